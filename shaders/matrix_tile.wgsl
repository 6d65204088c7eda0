// out[m, n] = (act(sum_tk a[at(m, t), k] w[n, t, k] + bias[n] + row_bias[b, n]) + residual[m, n]) * scale: conv2d as implicit GEMM over taps t, linear with one tap; with HALVES = 2 (GEGLU, Shazeer 2020, arXiv 2002.05202) value[n] * gelu(gate[n]) instead of act.
// **Shapes** a [B][H][W][A4], second [M][second4], w [panels][taps][K4 * 4][8], bias [panels * 8], row_bias [B][row_bias4], residual and out [B][OH][OW][N4], in vectors of four; a panel is 32 columns, with HALVES = 2 even panels hold values and odd panels the gates of the same columns. A linear layer is H = OH = M, W = OW = 1. K4 = A4 + second4, second only with one tap.
// **Grid** a workgroup of 64 invocations owns 64 rows m = (b, oy, ox) (x, folded into z) and two panels (y); an invocation owns every eighth row and four columns of both panels, and fetches one row of a.
// **Host** binds operands that the flags leave out to anything; they are never read. K4, panels and rows need not fill a tile.
// **Numbers** products are summed in f32, tap by tap, in the order of k; nothing cancels beyond what the data cancel themselves.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<InVec>; // [B][H][W][A4]
@group(0) @binding(2) var<storage, read> second: array<InVec>; // [M][second4]
@group(0) @binding(3) var<storage, read> w: array<WeightVec>; // [panels][taps][K4 * 4][8]
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>; // [panels * 8]
@group(0) @binding(5) var<storage, read> row_bias: array<vec4<f32>>; // [B][row_bias4]
@group(0) @binding(6) var<storage, read> residual: array<OutVec>; // [B][OH][OW][N4]
@group(0) @binding(7) var<storage, read_write> out: array<OutVec>; // [B][OH][OW][N4]

var<workgroup> tile_a: array<vec4<f32>, 256>; // [4 vectors along k][64 rows]
var<workgroup> tile_w: array<vec4<f32>, 256>; // [2 panels][16 k][8]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  let row0 = params.first_row + (group.z * groups.x + group.x) * 64u;
  let panel0 = group.y * 2u;
  let a4 = params.k4 - params.second4;
  let taps = params.kernel_height * params.kernel_width;
  let stored_height = (params.height + params.upsample) >> params.upsample;
  let stored_width = (params.width + params.upsample) >> params.upsample;
  let row = row0 + index;
  let batch = row / params.positions;
  let position = row - batch * params.positions;
  let out_y = position / params.out_width;
  let top = out_y * params.stride - params.pad_top;
  let left = (position - out_y * params.out_width) * params.stride - params.pad_left;
  let lane = index & 7u;
  let first = index >> 3u;
  var acc: array<array<vec4<f32>, 8>, 2>;
  for (var ky = 0u; ky < params.kernel_height; ky++) {
    for (var kx = 0u; kx < params.kernel_width; kx++) {
      let y = top + ky;
      let x = left + kx;
      let inside = row < params.end_row && y < params.height && x < params.width;
      let start = ((batch * stored_height + (y >> params.upsample)) * stored_width + (x >> params.upsample)) * a4 - params.a_base;
      let tap = ky * params.kernel_width + kx;
      for (var k = 0u; k < params.k4; k += 4u) {
        for (var i = 0u; i < 4u; i++) {
          var value = vec4<f32>();
          if (inside && k + i < a4) {
            value = load_in(a[start + k + i]);
          } else if (SECOND == 1u && inside && k + i < params.k4) {
            value = load_in(second[row * params.second4 + k + i - a4 - params.second_base]);
          }
          tile_a[i * 64u + index] = value;
          let half = i >> 1u;
          let slot = (i & 1u) * 64u + index;
          var weight = vec4<f32>();
          if (panel0 + half < params.panels && k * 4u + (slot >> 3u) < params.k4 * 4u) {
            weight = load_weight(w[(((panel0 + half) * taps + tap) * params.k4 + k) * 32u + slot]);
          }
          tile_w[half * 128u + slot] = weight;
        }
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) {
          var v: array<vec4<f32>, 8>;
          for (var r = 0u; r < 8u; r++) {
            v[r] = tile_a[i * 64u + r * 8u + first];
          }
          for (var p = 0u; p < 2u; p++) {
            let w0 = tile_w[p * 128u + i * 32u + lane];
            let w1 = tile_w[p * 128u + i * 32u + 8u + lane];
            let w2 = tile_w[p * 128u + i * 32u + 16u + lane];
            let w3 = tile_w[p * 128u + i * 32u + 24u + lane];
            for (var r = 0u; r < 8u; r++) {
              acc[p][r] = fma(vec4<f32>(v[r].x), w0, acc[p][r]);
              acc[p][r] = fma(vec4<f32>(v[r].y), w1, acc[p][r]);
              acc[p][r] = fma(vec4<f32>(v[r].z), w2, acc[p][r]);
              acc[p][r] = fma(vec4<f32>(v[r].w), w3, acc[p][r]);
            }
          }
        }
        workgroupBarrier();
      }
    }
  }
  for (var r = 0u; r < 8u; r++) {
    let at = row0 + r * 8u + first;
    if (HALVES == 2u) {
      finish(at, panel0, lane, acc[0][r], acc[1][r]);
    } else {
      finish(at, panel0, lane, acc[0][r], vec4<f32>());
      finish(at, panel0 + 1u, lane, acc[1][r], vec4<f32>());
    }
  }
}
