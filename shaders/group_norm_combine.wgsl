// Mean and scale of every channel from the chunks' means and M2: Chan's pairwise rule over channels and chunks of a group.
// **Shapes** partials [B, chunks, 2, C]; weight [C]; norm [B, 2, C]: mean, then weight / sqrt(variance + eps).
// **Grid** one workgroup of 64 invocations for each (group, batch element); that of the last group clears the pad channels.
// **Host** the last chunk of a batch element has params.last rows, all others params.chunk.
// **Numbers** f32; the spread of the chunk means is summed about the group's mean.

struct Params {
    channels: u32,     // C
    stride: u32,       // C4 * 4
    per_group: u32,    // C / groups
    chunks: u32,
    chunk: u32,        // rows of a chunk
    last: u32,         // rows of the last chunk
    eps: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;    // [B, chunks, 2, C]
@group(0) @binding(2) var<storage, read> weight: array<f32>;      // [C]
@group(0) @binding(3) var<storage, read_write> norm: array<f32>;  // [B, 2, C]

var<workgroup> shared_sum: array<f32, 64>;

fn total(value: f32, lane: u32) -> f32 {
    shared_sum[lane] = value;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half = half / 2u) {
        if (lane < half) {
            shared_sum[lane] += shared_sum[lane + half];
        }
        workgroupBarrier();
    }
    let result = shared_sum[0];
    workgroupBarrier();
    return result;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * params.per_group;
    let image = group.y;
    let items = params.per_group * params.chunks;
    let rows = f32(params.chunk * (params.chunks - 1u) + params.last);
    let elements = rows * f32(params.per_group);
    var sum = 0.0;
    for (var i = lane; i < items; i += 64u) {
        let chunk = i / params.per_group;
        let count = f32(select(params.chunk, params.last, chunk == params.chunks - 1u));
        let at = (image * params.chunks + chunk) * 2u * params.stride + first + i % params.per_group;
        sum += partials[at] * (count / elements);
    }
    let mean = total(sum, lane);
    var spread = 0.0;
    for (var i = lane; i < items; i += 64u) {
        let chunk = i / params.per_group;
        let count = f32(select(params.chunk, params.last, chunk == params.chunks - 1u));
        let at = (image * params.chunks + chunk) * 2u * params.stride + first + i % params.per_group;
        let d = partials[at] - mean;
        spread += partials[at + params.stride] + count * d * d;
    }
    let variance = total(spread, lane) / elements;
    let scale = 1.0 / sqrt(variance + params.eps);
    let out = image * 2u * params.stride + first;
    let behind = first + params.per_group;
    let count = select(params.per_group, params.stride - first, behind == params.channels);
    for (var c = lane; c < count; c += 64u) {
        let valid = c < params.per_group;
        norm[out + c] = select(0.0, mean, valid);
        norm[out + params.stride + c] = select(0.0, scale * weight[first + c], valid);
    }
}
