// e and x0 as in prediction.wgsl, x0 bounded, then s'_i = sum_j m_ij s_j + e_i e + d_i x0 + n_i noise D, D = 1 or the deviation that the model predicts (arXiv:2102.09672, equation 15).
// **Shapes** model_output [1 or 2, P, O4]; factor [1]; noise [P, C4]; state, next [SLOTS, P, C4]; table [rows]; model_input [BATCH, P, C4].
// **Grid** one invocation a vector of the latent; workgroups of 64 fold from x into y.
// **Host** table = (a, b, clip, input scale of the next call), (guidance, k, l, 0), then per slot SLOTS + 3 factors in vectors of four; DEVIATION 1: D = exp(k + l v), 2: D = sqrt(v), v the second half of the channels; THRESHOLD 1: factor.y bounds x0.
// **Numbers** f32; coefficients are computed on the host in f64, so cancelling schedules keep their digits; a NaN is never clamped to a number.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> model_output: array<MVec>;             // [1 or 2, P, O4]
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

fn bounded(x0: vec4<f32>) -> vec4<f32> {
    if (THRESHOLD == 1u) {
        let s = factor[0].y;
        return select(clamp(x0, vec4<f32>(-s), vec4<f32>(s)) / s, x0, is_nan(x0));
    }
    let clip = table[0].z;
    if (clip > 0.0) {
        return select(clamp(x0, vec4<f32>(-clip), vec4<f32>(clip)), x0, is_nan(x0));
    }
    return x0;
}

// The second half of the channels of the last prediction, which is the prompt's.
fn predicted_deviation(i: u32) -> vec4<f32> {
    let row = i / params.width + GUIDED * (params.vectors / params.width);
    let channel = params.channels + i % params.width * 4u;
    let begin = row * params.output_width;
    var v = load_m(model_output[begin + channel / 4u]);
    if (SHIFT != 0u) {
        let high = load_m(model_output[begin + min(channel / 4u + 1u, params.output_width - 1u)]);
        if (SHIFT == 1u) {
            v = vec4<f32>(v.yzw, high.x);
        } else if (SHIFT == 2u) {
            v = vec4<f32>(v.zw, high.xy);
        } else {
            v = vec4<f32>(v.w, high.xyz);
        }
    }
    v = select(vec4<f32>(), v, present(i));
    if (DEVIATION == 1u) {
        return exp(table[1].y + table[1].z * v);
    }
    return sqrt(v);
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
    let e = guided(i);
    let x0 = bounded(estimate(i, e));
    for (var slot = 0u; slot < SLOTS; slot++) {
        var v = coefficient(slot, SLOTS) * e + coefficient(slot, SLOTS + 1u) * x0;
        let noisy = coefficient(slot, SLOTS + 2u);
        if (noisy != 0.0) {
            var drawn = noisy * noise[i];
            if (DEVIATION != 0u) {
                drawn *= predicted_deviation(i);
            }
            v += drawn;
        }
        for (var j = 0u; j < SLOTS; j++) {
            v += coefficient(slot, j) * state[j * params.vectors + i];
        }
        next[slot * params.vectors + i] = v;
        if (slot == 0u) {
            for (var b = 0u; b < BATCH; b++) {
                model_input[b * params.vectors + i] = store_input(table[0].w * v);
            }
        }
    }
}
