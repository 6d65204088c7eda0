// y[b, h, i, j] = table[bucket(j - i), h] + mask[b, j]: T5's relative positions (arXiv:1910.10683) with the padding's mask, as attention adds them.
// **Shapes** buckets [2 T - 1], bucket(d) at d + T - 1; table [buckets, H4]; mask [B, T4]; y [B, H, T, T4].
// **Grid** one invocation a vector of y; workgroups of 64 fold from x into y.
// **Host** buckets are below the table's rows.
// **Numbers** one sum in f32; the mask's least number absorbs the bias.

struct Params {
    begin: u32,    // first vector of this launch
    end: u32,      // one past the last
    tokens: u32,   // T
    heads: u32,    // H
    width: u32,    // T4
    y_base: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> buckets: array<f32>;        // [2 T - 1]
@group(0) @binding(2) var<storage, read> table: array<f32>;          // [buckets, H4 * 4]
@group(0) @binding(3) var<storage, read> mask: array<vec4<f32>>;     // [B, T4]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;  // [B, H, T, T4]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = params.begin + (group.y * groups.x + group.x) * 64u + lane;
    if (at >= params.end) {
        return;
    }
    let column = at % params.width;
    let row = at / params.width;
    let query = row % params.tokens;
    let head = row / params.tokens % params.heads;
    let batch = row / params.tokens / params.heads;
    let stride = (params.heads + 3u) / 4u * 4u;
    var bias = vec4<f32>();
    for (var k = 0u; k < 4u; k++) {
        let key = column * 4u + k;
        if (key < params.tokens) {
            let bucket = u32(buckets[key + params.tokens - 1u - query]);
            bias[k] = table[bucket * stride + head] + mask[batch * params.width + column][k];
        }
    }
    y[at - params.y_base] = bias;
}
