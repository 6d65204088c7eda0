// out[m, n] = act(sum_tk a[at(m, t), k] w[n, t, k] + bias[n] + row_bias[b, n]) * scale + residual[m, n]: conv2d as implicit GEMM over taps t, linear with one tap; with GEGLU (Shazeer 2020, arXiv 2002.05202) value[n] * gelu(gate[n]) instead of act.
// **Shapes** a [B][H][W][A4], second [B][H][W][second4], w [panels][taps][K4 * 4][8], bias [panels * 8], row_bias [B][row_bias4], residual and out [B][OH][OW][N4], in vectors of four; a panel is 32 columns, with GEGLU even panels hold values and odd panels the gates of the same columns. A linear layer is H = OH = M, W = OW = 1. K4 = A4 + second4.
// **Grid** a workgroup of 8 lanes owns ROWS rows m = (b, oy, ox) (x, folded into z) and GROUPS x HALVES panels (y): see matrix_rows, which follows.
// **Host** takes this one for CPU adapters that read storage buffers in vectors (Mesa's llvmpipe from 26 on); operands that the flags leave out are bound to anything and never read.
// **Numbers** products are summed in f32, tap by tap, in the order of k; nothing cancels beyond what the data cancel themselves.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<InVec>; // [B][H][W][A4]
@group(0) @binding(2) var<storage, read> second: array<InVec>; // [B][H][W][second4]
@group(0) @binding(3) var<storage, read> w: array<WeightVec>; // [panels][taps][K4 * 4][8]
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>; // [panels * 8]
@group(0) @binding(5) var<storage, read> row_bias: array<vec4<f32>>; // [B][row_bias4]
@group(0) @binding(6) var<storage, read> residual: array<OutVec>; // [B][OH][OW][N4]
@group(0) @binding(7) var<storage, read_write> out: array<OutVec>; // [B][OH][OW][N4]

fn fetch_a(i: u32) -> vec4<f32> {
  return load_in(a[i]);
}

fn fetch_second(i: u32) -> vec4<f32> {
  return load_in(second[i]);
}

fn fetch_w(i: u32) -> vec4<f32> {
  return load_weight(w[i]);
}

fn fetch_row_bias(i: u32) -> vec4<f32> {
  return row_bias[i];
}

fn fetch_residual(i: u32) -> vec4<f32> {
  return load_out(residual[i]);
}
