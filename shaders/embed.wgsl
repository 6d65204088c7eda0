// y[b, t] = table[ids[b, t]] + positions[first[b, t] + t], the input of a text encoder (arXiv:2103.00020), or of a generator of tokens at some place.
// **Shapes** ids [B, T] (one vector each, the id, then first); table 0..3 [V, C4] in four row ranges; positions [T.., C4]; y [B, T, C4].
// **Grid** one invocation an output vector; workgroups of 64 fold from x into y.
// **Host** every id is below V, every first + t has a position; a table of fewer ranges binds its last one again; params.split is the rows of a range.
// **Numbers** one f32 addition.

struct Params {
    begin: u32,   // first vector of this launch
    end: u32,     // one past the last
    width: u32,   // C4
    tokens: u32,  // T
    split: u32,   // rows of a range
    y_base: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<vec4<u32>>;        // [B, T]
@group(0) @binding(2) var<storage, read> positions: array<TableVec>;   // [T.., C4]
@group(0) @binding(3) var<storage, read> table0: array<TableVec>;      // [split, C4]
@group(0) @binding(4) var<storage, read> table1: array<TableVec>;      // [split, C4]
@group(0) @binding(5) var<storage, read> table2: array<TableVec>;      // [split, C4]
@group(0) @binding(6) var<storage, read> table3: array<TableVec>;      // [split, C4]
@group(0) @binding(7) var<storage, read_write> y: array<YVec>;         // [B, T, C4]

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
    let row_id = ids[i / params.width];
    let id = row_id.x;
    let at = id % params.split * params.width + column;
    var row: vec4<f32>;
    switch id / params.split {
        case 0u: { row = load_table(table0[at]); }
        case 1u: { row = load_table(table1[at]); }
        case 2u: { row = load_table(table2[at]); }
        default: { row = load_table(table3[at]); }
    }
    let position = load_table(positions[(row_id.y + i / params.width % params.tokens) * params.width + column]);
    y[i - params.y_base] = store_y(row + position);
}
