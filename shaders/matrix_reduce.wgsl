// out[m, n] = act(sum_s partials[s, m, n] + bias[n] + row_bias[b, n]) * scale + residual[m, n]: the second half of a product whose sum over k is split into parts s; with HALVES = 2 (GEGLU) value * gelu(gate) instead of act.
// **Shapes** partials [S][partial_rows][partial4], columns in the order of the packed weight's panels; bias [panels * 8], row_bias [B][row_bias4], residual and out [M][N4], in vectors of four.
// **Grid** an invocation owns one vector of out; workgroups of 64 in x, folded into y.
// **Host** binds operands that the flags leave out to anything; they are never read.
// **Numbers** the parts are added in f32 in their order, so that every run gives the same bits.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>; // [S][partial_rows][partial4]
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>; // [panels * 8]
@group(0) @binding(3) var<storage, read> row_bias: array<vec4<f32>>; // [B][row_bias4]
@group(0) @binding(4) var<storage, read> residual: array<OutVec>; // [M][N4]
@group(0) @binding(5) var<storage, read_write> out: array<OutVec>; // [M][N4]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  let i = (group.y * groups.x + group.x) * 64u + index;
  let row = i / params.out4;
  let column = i - row * params.out4;
  if (row >= params.end_row) {
    return;
  }
  let lane = column & 7u;
  let panel = (column >> 3u) * HALVES;
  let part = params.partial_rows * params.partial4;
  var at = row * params.partial4 + panel * 8u + lane;
  var first = vec4<f32>();
  var second = vec4<f32>();
  for (var s = 0u; s < params.splits; s++) {
    first += partials[at];
    if (HALVES == 2u) {
      second += partials[at + 8u];
    }
    at += part;
  }
  finish(row, panel, lane, first, second);
}
