// out[m, n] = act(sum_tk a[at(m, t), k] w[n, t, k] + bias[n] + row_bias[b, n]) * scale + residual[m, n]: conv2d as implicit GEMM over taps t, linear with one tap; with HALVES = 2 (GEGLU, Shazeer 2020, arXiv 2002.05202) value[n] * gelu(gate[n]) instead of act.
// **Shapes** a [B][H][W][A4], second [B][H][W][second4], w [panels][taps][K4 * 4][8], bias [panels * 8], row_bias [B][row_bias4], residual and out [B][OH][OW][N4], in vectors of four; a panel is 32 columns, with HALVES = 2 even panels hold values and odd panels the gates of the same columns. A linear layer is H = OH = M, W = OW = 1. K4 = A4 + second4.
// **Grid** a workgroup of INVOCATIONS owns ROWS rows m = (b, oy, ox) (x, folded into z) and PAIRS pairs of panels (y); an invocation owns every LINES-th row and four columns of both panels of a pair.
// **Host** binds operands that the flags leave out to anything; they are never read. K4, panels and rows need not fill a tile.
// **Numbers** products are summed in f32, tap by tap, in the order of k; nothing cancels beyond what the data cancel themselves.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<InVec>; // [B][H][W][A4]
@group(0) @binding(2) var<storage, read> second: array<InVec>; // [B][H][W][second4]
@group(0) @binding(3) var<storage, read> w: array<WeightVec>; // [panels][taps][K4 * 4][8]
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>; // [panels * 8]
@group(0) @binding(5) var<storage, read> row_bias: array<vec4<f32>>; // [B][row_bias4]
@group(0) @binding(6) var<storage, read> residual: array<OutVec>; // [B][OH][OW][N4]
@group(0) @binding(7) var<storage, read_write> out: array<OutVec>; // [B][OH][OW][N4]

const LINES = INVOCATIONS / (8u * PAIRS);
const OWNED = ROWS / LINES;
const A_LOADS = ROWS * 4u / INVOCATIONS;
const W_LOADS = PAIRS * 256u / INVOCATIONS;

var<workgroup> tile_a: array<vec4<f32>, 4u * ROWS>; // [4 vectors along k][ROWS]
var<workgroup> tile_w: array<vec4<f32>, 256u * PAIRS>; // [2 * PAIRS panels][16 k][8]

// Where a row's vector i lies in tile_a: rows change places, so that neighbours along k lie in different banks.
fn spread(i: u32, row: u32) -> u32 {
  return i * ROWS + (row ^ (i << 1u));
}

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  let row0 = params.first_row + (group.z * groups.x + group.x) * ROWS;
  let panel0 = group.y * (2u * PAIRS);
  let a4 = params.k4 - params.second4;
  let taps = params.kernel_height * params.kernel_width;
  let stored_height = (params.height + params.upsample) >> params.upsample;
  let stored_width = (params.width + params.upsample) >> params.upsample;
  let along = index & 3u;
  var picture: array<u32, A_LOADS>;
  var top: array<u32, A_LOADS>;
  var left: array<u32, A_LOADS>;
  for (var l = 0u; l < A_LOADS; l++) {
    let row = row0 + (index >> 2u) + l * (INVOCATIONS / 4u);
    let batch = row / params.positions;
    let position = row - batch * params.positions;
    let y = position / params.out_width;
    picture[l] = batch * stored_height;
    top[l] = select(0x40000000u, y * params.stride - params.pad_top, row < params.end_row);
    left[l] = (position - y * params.out_width) * params.stride - params.pad_left;
  }
  let lane = index & 7u;
  let pair = (index >> 3u) % PAIRS;
  let line = (index >> 3u) / PAIRS;
  var acc: array<array<vec4<f32>, OWNED>, 2>;
  for (var ky = 0u; ky < params.kernel_height; ky++) {
    for (var kx = 0u; kx < params.kernel_width; kx++) {
      let tap = ky * params.kernel_width + kx;
      for (var k = 0u; k < params.k4; k += 4u) {
        for (var l = 0u; l < A_LOADS; l++) {
          let y = top[l] + ky;
          let x = left[l] + kx;
          let inside = y < params.height && x < params.width;
          let place = (index >> 2u) + l * (INVOCATIONS / 4u);
          var value = vec4<f32>();
          let pixel = (picture[l] + (y >> params.upsample)) * stored_width + (x >> params.upsample);
          if (inside && k + along < a4) {
            value = load_in(a[pixel * a4 + k + along - params.a_base]);
          } else if (SECOND == 1u && inside && k + along < params.k4) {
            value = load_in(second[pixel * params.second4 + k + along - a4 - params.second_base]);
          }
          tile_a[spread(along, place)] = value;
        }
        for (var l = 0u; l < W_LOADS; l++) {
          let slot = index + l * INVOCATIONS;
          let panel = panel0 + (slot >> 7u);
          let inner = slot & 127u;
          var weight = vec4<f32>();
          if (panel < params.panels && k * 4u + (inner >> 3u) < params.k4 * 4u) {
            weight = load_weight(w[((panel * taps + tap) * params.k4 + k) * 32u + inner]);
          }
          tile_w[slot] = weight;
        }
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) {
          var v: array<vec4<f32>, OWNED>;
          for (var r = 0u; r < OWNED; r++) {
            v[r] = tile_a[spread(i, r * LINES + line)];
          }
          for (var p = 0u; p < 2u; p++) {
            let at = (pair * 2u + p) * 128u + i * 32u + lane;
            let w0 = tile_w[at];
            let w1 = tile_w[at + 8u];
            let w2 = tile_w[at + 16u];
            let w3 = tile_w[at + 24u];
            for (var r = 0u; r < OWNED; r++) {
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
  let panel = panel0 + pair * 2u;
  for (var r = 0u; r < OWNED; r++) {
    let at = row0 + r * LINES + line;
    if (HALVES == 2u) {
      finish(at, panel, lane, acc[0][r], acc[1][r]);
    } else {
      finish(at, panel, lane, acc[0][r], vec4<f32>());
      finish(at, panel + 1u, lane, acc[1][r], vec4<f32>());
    }
  }
}
