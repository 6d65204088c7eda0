// y[b, at(b)] = x[b, first..first + width]: one row of each batch element put into its place in a larger tensor, which keeps all others; at(b) is at[b] or the same for all.
// **Shapes** x [B, x_width], y [B, T, width], in units of eight bytes; at [B], the index in the second place.
// **Grid** one invocation a unit of x's part; workgroups of 64 fold from x into y.
// **Host** at(b) < T; units are whole vectors of four.
// **Numbers** the bits are copied.

struct Params {
    end: u32,      // B * width
    width: u32,
    x_width: u32,
    first: u32,
    rows: u32,     // T
    fixed: u32,    // the row where at is not read
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec2<u32>>;        // [B, x_width]
@group(0) @binding(2) var<storage, read> at: array<vec4<u32>>;       // [B]
@group(0) @binding(3) var<storage, read_write> y: array<vec2<u32>>;  // [B, T, width]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + lane;
    if (i >= params.end) {
        return;
    }
    let batch = i / params.width;
    let unit = i % params.width;
    var row = params.fixed;
    if (INDEXED == 1u) {
        row = at[batch].y;
    }
    y[(batch * params.rows + row) * params.width + unit] = x[batch * params.x_width + params.first + unit];
}
