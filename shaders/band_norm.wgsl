// Mean and scale of every channel from chunks of any number of rows: Chan's pairwise rule over channels and chunks of a group (GroupNorm, arXiv:1803.08494).
// **Shapes** partials [chunks, 3, C]: mean, M2, rows; weight [C]; norm [2, C]: mean, then weight / sqrt(variance + eps).
// **Grid** one workgroup of 64 invocations for each group; that of the last group clears the pad channels.
// **Host** params.rows is the sum of the chunks' rows.
// **Numbers** f32; the spread of the chunk means is summed about the group's mean.

struct Params {
    channels: u32,     // C
    stride: u32,       // C4 * 4
    per_group: u32,    // C / groups
    chunks: u32,
    rows: u32,
    eps: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;    // [chunks, 3, C]
@group(0) @binding(2) var<storage, read> weight: array<f32>;      // [C]
@group(0) @binding(3) var<storage, read_write> norm: array<f32>;  // [2, C]

var<workgroup> sums: array<f32, 64>;

fn total(value: f32, lane: u32) -> f32 {
    sums[lane] = value;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half = half / 2u) {
        if (lane < half) {
            sums[lane] += sums[lane + half];
        }
        workgroupBarrier();
    }
    let result = sums[0];
    workgroupBarrier();
    return result;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * params.per_group;
    let items = params.per_group * params.chunks;
    let elements = f32(params.rows) * f32(params.per_group);
    var sum = 0.0;
    for (var i = lane; i < items; i += 64u) {
        let at = i / params.per_group * 3u * params.stride + first + i % params.per_group;
        sum += partials[at] * (partials[at + 2u * params.stride] / elements);
    }
    let mean = total(sum, lane);
    var spread = 0.0;
    for (var i = lane; i < items; i += 64u) {
        let at = i / params.per_group * 3u * params.stride + first + i % params.per_group;
        let d = partials[at] - mean;
        spread += partials[at + params.stride] + partials[at + 2u * params.stride] * d * d;
    }
    let scale = 1.0 / sqrt(total(spread, lane) / elements + params.eps);
    let behind = first + params.per_group;
    let count = select(params.per_group, params.stride - first, behind == params.channels);
    for (var c = lane; c < count; c += 64u) {
        let valid = c < params.per_group;
        norm[first + c] = select(0.0, mean, valid);
        norm[params.stride + first + c] = select(0.0, scale * weight[first + c], valid);
    }
}
