// Per channel and chunk of rows: mean and M2 = sum (x - mean)^2, the first part of GroupNorm (arXiv:1803.08494).
// **Shapes** x [B, P, C4] vectors; partials [B, chunks, 2, C4] vectors: means, then M2.
// **Grid** x covers C4 in workgroups of 64 invocations, y the chunks of this launch, z is 1; a chunk lies in one batch element.
// **Host** chunks of params.chunk rows (the last of a batch element may be shorter); bases as in every banded kernel.
// **Numbers** sums of (x - first row) in f32, so that a large mean does not cancel; at most 256 terms a sum.

struct Params {
    positions: u32,   // P
    width: u32,       // C4
    chunk: u32,       // rows of a chunk
    chunks: u32,      // chunks of one batch element
    first: u32,       // first chunk of this launch, counted over the batch
    x_base: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<XVec>;                    // [B, P, C4]
@group(0) @binding(2) var<storage, read_write> partials: array<vec4<f32>>;  // [B, chunks, 2, C4]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = group.x * 64u + lane;
    if (column >= params.width) {
        return;
    }
    let chunk = params.first + group.y;
    let image = chunk / params.chunks;
    let begin = (chunk % params.chunks) * params.chunk;
    let count = min(params.chunk, params.positions - begin);
    let start = (image * params.positions + begin) * params.width + column - params.x_base;
    let origin = load_x(x[start]);
    var sum = vec4<f32>();
    var squares = vec4<f32>();
    for (var row = 1u; row < count; row++) {
        let d = load_x(x[start + row * params.width]) - origin;
        sum += d;
        squares += d * d;
    }
    let n = f32(count);
    let out = chunk * 2u * params.width + column;
    partials[out] = origin + sum / n;
    partials[out + params.width] = max(squares - sum * sum / n, vec4<f32>());
}
