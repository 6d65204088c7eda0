// y = act(n * (1 + scale) + shift), n = (x - mean) * weight / sqrt(variance + eps) + bias: the second part of GroupNorm (arXiv:1803.08494).
// **Shapes** x = [a | b] [B, P, C4] (pair.wgsl); partials [B, groups, chunks]: mean, M2, count, 0; weight, bias [C4]; modulation [B, modulation_width] where MODULATED, where SPATIAL (scale without 1 +; arXiv:2209.09002) [B, cells, modulation_width]; y [B, P, C4].
// **Grid** x: tiles of columns, whole groups each; y: the blocks of rows of this launch. 256 invocations, strip = a row of the tile at a time.
// **Host** as for group_norm_stats; members * share <= 256; the pad channels of weight, bias, scale and shift are zero, so pad channels stay zero.
// **Numbers** f32; chunks by Chan's rule; the mean is subtracted before scaling, so that a large mean does not cancel; erf in GELU as in elementwise.wgsl.

struct Params {
    positions: u32,   // P
    channels: u32,    // C
    width: u32,       // C4
    channels_a: u32,  // A
    width_a: u32,     // A4
    width_b: u32,     // B4
    a_base: u32,
    b_base: u32,
    per_group: u32,   // C / groups
    groups: u32,
    members: u32,     // groups of a tile
    tile: u32,        // columns of a tile
    strips: u32,      // rows that a workgroup computes at once
    block: u32,       // rows of a workgroup
    blocks: u32,      // workgroups' blocks of one batch element
    first: u32,       // first block of this launch, counted over the batch
    chunks: u32,      // partials of a group
    share: u32,       // invocations that combine the partials of one group
    eps: f32,
    y_base: u32,
    modulation_width: u32, // vectors of a row of modulation
    scale_first: u32,      // the first of them that scales, and that shifts
    shift_first: u32,
    grid_width: u32,       // places of a line of the picture
    factor: u32,           // places of a cell along either axis
    modulation_base: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<XVec>;               // [B, P, A4]
@group(0) @binding(2) var<storage, read> b: array<XVec>;               // [B, P, B4]
@group(0) @binding(3) var<storage, read> partials: array<vec4<f32>>;   // [B, groups, chunks]
@group(0) @binding(4) var<storage, read> weight: array<vec4<f32>>;     // [C4]
@group(0) @binding(5) var<storage, read> bias: array<vec4<f32>>;       // [C4]
//@for i in BOUND
@group(0) @binding(6) var<storage, read> modulation: array<vec4<f32>>; // [B or B * cells, modulation_width]
//@end
@group(0) @binding({LAST}) var<storage, read_write> y: array<YVec>;    // [B, P, C4]

var<workgroup> shared_part: array<vec4<f32>, 256>;  // [members, share]: mean, M2, count
var<workgroup> shared_norm: array<vec2<f32>, 256>;  // [members]: mean, 1 / sqrt(variance + eps)

// Every share-th partial of a group.
fn combine_chunks(begin: u32, share: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var chunk = share; chunk < params.chunks; chunk += params.share) {
        let part = partials[begin + chunk];
        let total = sum.z + part.z;
        let d = part.x - sum.x;
        sum.x += d * (part.z / total);
        sum.y += part.y + d * d * (sum.z * part.z / total);
        sum.z = total;
    }
    return sum;
}

fn combine_shares(member: u32) -> vec2<f32> {
    let begin = member * params.share;
    let count = f32(params.positions * params.per_group);
    var mean = 0.0;
    for (var i = begin; i < begin + params.share; i++) {
        mean += shared_part[i].x * (shared_part[i].z / count);
    }
    var spread = 0.0;
    for (var i = begin; i < begin + params.share; i++) {
        let d = shared_part[i].x - mean;
        spread += shared_part[i].y + shared_part[i].z * d * d;
    }
    return vec2<f32>(mean, 1.0 / sqrt(spread / count + params.eps));
}

//@for i in SPATIAL
// The first vector of the modulation of a place of a picture.
fn cell(image: u32, place: u32) -> u32 {
    let across = params.grid_width / params.factor;
    let cells = params.positions / params.grid_width / params.factor * across;
    let own = place / params.grid_width / params.factor * across + place % params.grid_width / params.factor;
    return (image * cells + own) * params.modulation_width - params.modulation_base;
}
//@end

//@for i in GELU
fn gelu(x: vec4<f32>) -> vec4<f32> {
    let v = abs(x) * 0.70710678;
    let t = 1.0 / (1.0 + 0.3275911 * v);
    let p = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return 0.5 * x * (1.0 + sign(x) * (1.0 - p * exp(-v * v)));
}
//@end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let image = (params.first + group.y) / params.blocks;
    let member = lane / params.share;
    let g = group.x * params.members + member;
    if (member < params.members && g < params.groups) {
        shared_part[lane] = combine_chunks((image * params.groups + g) * params.chunks, lane % params.share);
    }
    workgroupBarrier();
    if (lane < params.members && group.x * params.members + lane < params.groups) {
        shared_norm[lane] = combine_shares(lane);
    }
    workgroupBarrier();
    let strip = lane / params.tile;
    let column = group.x * params.tile + lane % params.tile;
    if (strip >= params.strips || column >= params.width) {
        return;
    }
    let start = image * params.positions;
    let begin = start + (params.first + group.y) % params.blocks * params.block;
    let end = min(begin + params.block, start + params.positions);
    let last = min(params.groups - group.x * params.members, params.members) - 1u;
    let own = min((lane % params.tile * 4u + vec4<u32>(0u, 1u, 2u, 3u)) / params.per_group, vec4<u32>(last));
    let p = shared_norm[own.x];
    let q = shared_norm[own.y];
    let r = shared_norm[own.z];
    let s = shared_norm[own.w];
    let mean = vec4<f32>(p.x, q.x, r.x, s.x);
    var scale = vec4<f32>(p.y, q.y, r.y, s.y) * weight[column];
    var shift = bias[column];
    //@for i in MODULATED
    let more = 1.0 + modulation[image * params.modulation_width + params.scale_first + column];
    scale *= more;
    shift = shift * more + modulation[image * params.modulation_width + params.shift_first + column];
    //@end
    for (var row = begin + strip; row < end; row += 4u * params.strips) {
        // All loads before the first store, which a driver must not move them over.
        var v: array<vec4<f32>, 4>;
        //@for i in SPATIAL
        var scales: array<vec4<f32>, 4>;
        var shifts: array<vec4<f32>, 4>;
        //@end
        for (var k = 0u; k < 4u; k++) {
            let at = min(row + k * params.strips, end - 1u);
            v[k] = load_pair(at, column);
            //@for i in SPATIAL
            let own = cell(image, at - start) + column;
            scales[k] = modulation[own + params.scale_first];
            shifts[k] = modulation[own + params.shift_first];
            //@end
        }
        for (var k = 0u; k < 4u; k++) {
            let at = row + k * params.strips;
            var n = (v[k] - mean) * scale + shift;
            //@for i in SPATIAL
            n = n * scales[k] + shifts[k];
            //@end
            if (SILU == 1u) {
                n = n / (1.0 + exp(-n));
            }
            //@for i in GELU
            n = gelu(n);
            //@end
            if (at < end) {
                y[at * params.width + column - params.y_base] = store_y(n);
            }
        }
    }
}
