// out[m, n] = act(sum_k a[m, k] w[n, k] + bias[n] + row_bias[b, n]) * scale + residual[m, n] for a few rows m: a linear layer that reads its weight once; with GEGLU (Shazeer 2020, arXiv 2002.05202) value[n] * gelu(gate[n]) instead of act.
// **Shapes** as in matrix_lanes, of one tap.
// **Grid** a workgroup of 8 * SLICES invocations owns all ROWS rows and HALVES panels of 32 columns (x): 8 invocations side by side own a vector of four columns each, and each of the SLICES takes every SLICES-th vector of channels.
// **Host** ROWS is the number of rows; SLICES is 1 on CPU adapters, which have nothing to hide; operands that the flags leave out are bound to anything and never read.
// **Numbers** every slice is summed in f32 in the order of k, then the slices in their order, so that every run gives the same bits.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<InVec>; // [M][A4]
@group(0) @binding(2) var<storage, read> second: array<InVec>; // [M][second4]
@group(0) @binding(3) var<storage, read> w: array<WeightVec>; // [panels][K4 * 4][8]
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>; // [panels * 8]
@group(0) @binding(5) var<storage, read> row_bias: array<vec4<f32>>; // [B][row_bias4]
@group(0) @binding(6) var<storage, read> residual: array<OutVec>; // [M][N4]
@group(0) @binding(7) var<storage, read_write> out: array<OutVec>; // [M][N4]

const SUMS: u32 = ROWS * HALVES;

var<workgroup> shared_sums: array<vec4<f32>, SLICES * 8u * SUMS>;

// Vector k of row m of both inputs.
fn fetch(m: u32, k: u32) -> vec4<f32> {
  let first4 = params.k4 - params.second4;
  if (SECOND == 1u && k >= first4) {
    return load_in(second[m * params.second4 + k - first4]);
  }
  return load_in(a[m * first4 + k]);
}

@compute @workgroup_size(8 * SLICES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  let lane = index & 7u;
  let panel = group.x * HALVES;
  let stride = params.k4 * 32u;
  var sums: array<vec4<f32>, SUMS>;
  for (var k = index >> 3u; k < params.k4; k += SLICES) {
    var x: array<vec4<f32>, ROWS>;
    for (var m = 0u; m < ROWS; m++) {
      x[m] = fetch(m, k);
    }
    for (var h = 0u; h < HALVES; h++) {
      let at = (panel + h) * stride + k * 32u + lane;
      let w0 = load_weight(w[at]);
      let w1 = load_weight(w[at + 8u]);
      let w2 = load_weight(w[at + 16u]);
      let w3 = load_weight(w[at + 24u]);
      for (var m = 0u; m < ROWS; m++) {
        let i = m * HALVES + h;
        sums[i] = fma(vec4<f32>(x[m].x), w0, sums[i]);
        sums[i] = fma(vec4<f32>(x[m].y), w1, sums[i]);
        sums[i] = fma(vec4<f32>(x[m].z), w2, sums[i]);
        sums[i] = fma(vec4<f32>(x[m].w), w3, sums[i]);
      }
    }
  }
  if (SLICES == 1u) {
    for (var m = 0u; m < ROWS; m++) {
      finish(m, panel, lane, sums[m * HALVES], sums[m * HALVES + HALVES - 1u]);
    }
    return;
  }
  for (var i = 0u; i < SUMS; i++) {
    shared_sums[i * SLICES * 8u + index] = sums[i];
  }
  workgroupBarrier();
  // A row's eight vectors are finished by eight invocations.
  for (var m = index >> 3u; m < ROWS; m += SLICES) {
    var whole: array<vec4<f32>, HALVES>;
    for (var h = 0u; h < HALVES; h++) {
      for (var slice = 0u; slice < SLICES; slice++) {
        whole[h] += shared_sums[((m * HALVES + h) * SLICES + slice) * 8u + lane];
      }
    }
    finish(m, panel, lane, whole[0], whole[HALVES - 1u]);
  }
}
