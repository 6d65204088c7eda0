// Guidance e = (u + g (c - u)) * factor (arXiv:2207.12598), data estimate x0 = clamp(a s_0 + b e), then s'_i = sum_j m_ij s_j + e_i e + d_i x0 + n_i noise.
// **Shapes** model_output [1 or 2, P, C4]; factor [1]; noise [P, C4]; state, next [SLOTS, P, C4]; table [rows]; model_input [BATCH, P, C4].
// **Grid** one invocation a vector of the latent; workgroups of 64 fold from x into y.
// **Host** table = (a, b, clip, input scale of the next call), (guidance, 0, 0, 0), then per slot SLOTS + 3 factors in vectors of four.
// **Numbers** f32; coefficients are computed on the host in f64, so cancelling schedules keep their digits.

struct Params {
    vectors: u32,   // P * C4
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> model_output: array<MVec>;             // [1 or 2, P, C4]
@group(0) @binding(2) var<storage, read> factor: array<vec4<f32>>;              // [1]
@group(0) @binding(3) var<storage, read> noise: array<vec4<f32>>;               // [P, C4]
@group(0) @binding(4) var<storage, read> state: array<vec4<f32>>;               // [SLOTS, P, C4]
@group(0) @binding(5) var<storage, read> table: array<vec4<f32>>;               // [2 + SLOTS * ceil((SLOTS + 3) / 4)]
@group(0) @binding(6) var<storage, read_write> next: array<vec4<f32>>;          // [SLOTS, P, C4]
@group(0) @binding(7) var<storage, read_write> model_input: array<InputVec>;    // [BATCH, P, C4]

fn coefficient(slot: u32, column: u32) -> f32 {
    let width = (SLOTS + 6u) / 4u;
    return table[2u + slot * width + column / 4u][column % 4u];
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + lane;
    if (i >= params.vectors) {
        return;
    }
    let head = table[0];
    var e = load_m(model_output[i]);
    if (GUIDED == 1u) {
        let c = load_m(model_output[params.vectors + i]);
        e = (e + table[1].x * (c - e)) * factor[0].x;
    }
    var x0 = head.x * state[i] + head.y * e;
    if (head.z > 0.0) {
        x0 = clamp(x0, vec4<f32>(-head.z), vec4<f32>(head.z));
    }
    for (var slot = 0u; slot < SLOTS; slot++) {
        var v = coefficient(slot, SLOTS) * e + coefficient(slot, SLOTS + 1u) * x0;
        let noisy = coefficient(slot, SLOTS + 2u);
        if (noisy != 0.0) {
            v += noisy * noise[i];
        }
        for (var j = 0u; j < SLOTS; j++) {
            v += coefficient(slot, j) * state[j * params.vectors + i];
        }
        next[slot * params.vectors + i] = v;
        if (slot == 0u) {
            for (var b = 0u; b < BATCH; b++) {
                model_input[b * params.vectors + i] = store_input(head.w * v);
            }
        }
    }
}
