// Per group and chunk of rows: mean and M2 = sum (x - mean)^2, the first part of GroupNorm (arXiv:1803.08494).
// **Shapes** x = [a | b] [B, P, C4] (pair.wgsl); partials [B, groups, chunks] vectors: mean, M2, count, 0.
// **Grid** x: tiles of columns, whole groups each; y: the chunks of this launch. 256 invocations, strip = a row of the tile at a time.
// **Host** tile * strips <= 256; tile is a multiple of a group's channels, or holds all columns; a chunk lies in one batch element.
// **Numbers** f32: eight rows in two passes, then Chan's rule over rows, strips and channels, so that no large mean cancels.

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
    strips: u32,      // rows that a workgroup reads at once
    block: u32,       // rows of a chunk
    blocks: u32,      // chunks of one batch element
    first: u32,       // first chunk of this launch, counted over the batch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<XVec>;                    // [B, P, A4]
@group(0) @binding(2) var<storage, read> b: array<XVec>;                    // [B, P, B4]
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;  // [B, groups, chunks]

var<workgroup> shared_mean: array<vec4<f32>, 256>;    // [strips, tile], then [tile]
var<workgroup> shared_spread: array<vec4<f32>, 256>;  // M2, likewise
var<workgroup> shared_count: array<f32, 256>;         // rows of each

// Mean and M2 of one column over a strip's rows of the chunk, and how many they are.
fn strip_statistics(begin: u32, end: u32, column: u32, lane: u32) {
    var count = 0.0;
    var mean = vec4<f32>();
    var spread = vec4<f32>();
    for (var row = begin; row < end; row += 8u * params.strips) {
        var v: array<vec4<f32>, 8>;
        var sum = vec4<f32>();
        var rows = 0.0;
        for (var k = 0u; k < 8u; k++) {
            let at = row + k * params.strips;
            v[k] = load_pair(min(at, end - 1u), column);
            sum += select(vec4<f32>(), v[k], at < end);
            rows += select(0.0, 1.0, at < end);
        }
        let block_mean = sum / rows;
        var block_spread = vec4<f32>();
        for (var k = 0u; k < 8u; k++) {
            let d = select(vec4<f32>(), v[k] - block_mean, row + k * params.strips < end);
            block_spread += d * d;
        }
        let total = count + rows;
        let d = block_mean - mean;
        mean += d * (rows / total);
        spread += block_spread + d * d * (count * rows / total);
        count = total;
    }
    shared_mean[lane] = mean;
    shared_spread[lane] = spread;
    shared_count[lane] = count;
}

// The same over all strips, into the first strip's place.
fn column_statistics(lane: u32, rows: f32) {
    var mean = vec4<f32>();
    for (var s = 0u; s < params.strips; s++) {
        mean += shared_mean[s * params.tile + lane] * (shared_count[s * params.tile + lane] / rows);
    }
    var spread = vec4<f32>();
    for (var s = 0u; s < params.strips; s++) {
        let i = s * params.tile + lane;
        let d = shared_mean[i] - mean;
        spread += shared_spread[i] + shared_count[i] * d * d;
    }
    shared_mean[lane] = mean;
    shared_spread[lane] = spread;
}

// The same over the channels of a group: mean, M2, count.
fn group_statistics(member: u32, rows: f32) -> vec4<f32> {
    let begin = member * params.per_group;
    let share = 1.0 / f32(params.per_group);
    var mean = 0.0;
    var spread = 0.0;
    if (params.per_group % 4u == 0u) {
        for (var i = begin / 4u; i < (begin + params.per_group) / 4u; i++) {
            mean += dot(shared_mean[i], vec4<f32>(share));
        }
        for (var i = begin / 4u; i < (begin + params.per_group) / 4u; i++) {
            let d = shared_mean[i] - mean;
            spread += dot(shared_spread[i] + rows * d * d, vec4<f32>(1.0));
        }
    } else {
        for (var c = begin; c < begin + params.per_group; c++) {
            mean += shared_mean[c / 4u][c % 4u] * share;
        }
        for (var c = begin; c < begin + params.per_group; c++) {
            let d = shared_mean[c / 4u][c % 4u] - mean;
            spread += shared_spread[c / 4u][c % 4u] + rows * d * d;
        }
    }
    return vec4<f32>(mean, spread, rows * f32(params.per_group), 0.0);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let chunk = (params.first + group.y) % params.blocks;
    let image = (params.first + group.y) / params.blocks;
    let start = image * params.positions;
    let begin = start + chunk * params.block;
    let end = min(begin + params.block, start + params.positions);
    let rows = f32(end - begin);
    let strip = lane / params.tile;
    let column = group.x * params.tile + lane % params.tile;
    if (strip < params.strips && column < params.width) {
        strip_statistics(begin + strip, end, column, lane);
    }
    workgroupBarrier();
    if (lane < params.tile && group.x * params.tile + lane < params.width) {
        column_statistics(lane, rows);
    }
    workgroupBarrier();
    for (var member = lane; member < params.members; member += 256u) {
        let g = group.x * params.members + member;
        if (g < params.groups) {
            partials[(image * params.groups + g) * params.blocks + chunk] = group_statistics(member, rows);
        }
    }
}
