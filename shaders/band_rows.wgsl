// y[to + r] = silu((x[from + r] - mean) * scale + bias), GroupNorm's last part (arXiv:1803.08494), or x[from + r] unless NORM: rows of one band into another.
// **Shapes** x [X, C4], y [Y, C4] vectors; norm [2, C4]: mean, scale; bias [C4]. Without NORM both are bound to x and never read.
// **Grid** one invocation a vector; workgroups of 64 fold from x into y.
// **Host** params.begin is a multiple of C4; y_base is such that the first row lands where it should, modulo 2^32.
// **Numbers** f32; the mean is subtracted before scaling, so that a large mean does not cancel afterwards. Pad channels stay zero.

struct Params {
    begin: u32,       // first vector of x in this launch
    end: u32,         // one past the last
    width: u32,       // C4
    x_base: u32,
    y_base: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<XVec>;         // [X, C4]
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>; // [2, C4]
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [C4]
@group(0) @binding(4) var<storage, read_write> y: array<XVec>;   // [Y, C4]

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
    if (NORM == 0u) {
        y[i - params.y_base] = x[i - params.x_base];
        return;
    }
    let column = i % params.width;
    let v = (load_x(x[i - params.x_base]) - norm[column]) * norm[column + params.width] + bias[column];
    y[i - params.y_base] = store_x(v / (1.0 + exp(-v)));
}
