// Per channel and chunk of rows of one band: mean, M2 = sum (x - mean)^2 and the rows' number, for GroupNorm (arXiv:1803.08494) over bands.
// **Shapes** x [rows, C4] vectors; partials [chunks, 3, C4] vectors, the chunks of all bands one behind the other.
// **Grid** x covers C4 in workgroups of 64 invocations, y the chunks of this launch, z is 1.
// **Host** the last chunk may have fewer rows than params.chunk, but at least one.
// **Numbers** sums of (x - first row) in f32, so that a large mean does not cancel.

struct Params {
    width: u32,       // C4
    chunk: u32,       // rows of a chunk
    first: u32,       // first row of this launch
    rows: u32,        // rows of this launch
    out_first: u32,   // first chunk of this launch, counted over all bands
    x_base: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<XVec>;                    // [rows, C4]
@group(0) @binding(2) var<storage, read_write> partials: array<vec4<f32>>;  // [chunks, 3, C4]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = group.x * 64u + lane;
    if (column >= params.width) {
        return;
    }
    let begin = group.y * params.chunk;
    let count = min(params.chunk, params.rows - begin);
    let start = (params.first + begin) * params.width + column - params.x_base;
    let origin = load_x(x[start]);
    var sum = vec4<f32>();
    var squares = vec4<f32>();
    for (var row = 1u; row < count; row++) {
        let d = load_x(x[start + row * params.width]) - origin;
        sum += d;
        squares += d * d;
    }
    let n = f32(count);
    let out = (params.out_first + group.y) * 3u * params.width + column;
    partials[out] = origin + sum / n;
    partials[out + params.width] = max(squares - sum * sum / n, vec4<f32>());
    partials[out + 2u * params.width] = vec4<f32>(n);
}
