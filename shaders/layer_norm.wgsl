// y = (x - mean) / sqrt(variance + eps) * weight + bias over the channels of each row (arXiv:1607.06450).
// **Shapes** x, y [rows, C4]; weight, bias [C4].
// **Grid** one workgroup of 32 invocations a row; rows fold from x into y.
// **Host** params.channels is C; the pad channels of weight and bias are zero, so pad channels stay zero.
// **Numbers** two passes in f32: the mean first, then the squares about it.

struct Params {
    rows: u32,
    width: u32,     // C4
    channels: u32,  // C
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<XVec>;           // [rows, C4]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>; // [C4]
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;   // [C4]
@group(0) @binding(4) var<storage, read_write> y: array<YVec>;     // [rows, C4]

var<workgroup> shared_sum: array<f32, 32>;

fn total(value: f32, lane: u32) -> f32 {
    shared_sum[lane] = value;
    workgroupBarrier();
    for (var half = 16u; half > 0u; half = half / 2u) {
        if (lane < half) {
            shared_sum[lane] += shared_sum[lane + half];
        }
        workgroupBarrier();
    }
    let result = shared_sum[0];
    workgroupBarrier();
    return result;
}

@compute @workgroup_size(32)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if (row >= params.rows) {
        return;
    }
    let start = row * params.width;
    var sum = 0.0;
    for (var i = lane; i < params.width; i += 32u) {
        sum += dot(load_x(x[start + i]), vec4<f32>(1.0));
    }
    let mean = total(sum, lane) / f32(params.channels);
    var squares = 0.0;
    for (var i = lane; i < params.width; i += 32u) {
        let valid = vec4<u32>(0u, 1u, 2u, 3u) + 4u * i < vec4<u32>(params.channels);
        let d = select(vec4<f32>(), load_x(x[start + i]) - mean, valid);
        squares += dot(d, d);
    }
    let scale = 1.0 / sqrt(total(squares, lane) / f32(params.channels) + params.eps);
    for (var i = lane; i < params.width; i += 32u) {
        y[start + i] = store_y((load_x(x[start + i]) - mean) * scale * weight[i] + bias[i]);
    }
}
