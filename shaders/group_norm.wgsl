// y = act((x - mean) * scale + bias), the last part of GroupNorm (arXiv:1803.08494), with SiLU where SILU is 1.
// **Shapes** x, y [B, P, C4]; norm [B, 2, C4]: mean, scale; bias [C4].
// **Grid** one invocation a vector; workgroups of 64 fold from x into y.
// **Host** the pad channels of norm and bias are zero, so pad channels stay zero.
// **Numbers** f32; the mean is subtracted before scaling, so that a large mean does not cancel afterwards.

struct Params {
    begin: u32,       // first vector of this launch
    end: u32,         // one past the last
    width: u32,       // C4
    plane: u32,       // P * C4
    x_base: u32,
    y_base: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<XVec>;         // [B, P, C4]
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>; // [B, 2, C4]
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [C4]
@group(0) @binding(4) var<storage, read_write> y: array<YVec>;   // [B, P, C4]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = params.begin + (group.y * groups.x + group.x) * 64u + lane;
    if (i >= params.end) {
        return;
    }
    let column = i % params.width;
    let at = i / params.plane * 2u * params.width + column;
    var v = (load_x(x[i - params.x_base]) - norm[at]) * norm[at + params.width] + bias[column];
    if (SILU == 1u) {
        v = v / (1.0 + exp(-v));
    }
    y[i - params.y_base] = store_y(v);
}
