// out[m, n] = (act(sum_tk a[at(m, t), k] w[n, t, k] + bias[n] + row_bias[b, n]) + residual[m, n]) * scale: conv2d as implicit GEMM over taps t, linear with one tap; with GEGLU (Shazeer 2020, arXiv 2002.05202) value[n] * gelu(gate[n]) instead of act.
// **Shapes** a [B][H][W][K4], w [panels][taps][K4 * 4][8], bias [panels * 8], row_bias [B][N4], residual and out [B][OH][OW][N4], in vectors of four; a panel is 32 columns, with GEGLU even panels hold values and odd panels the gates of the same columns. A linear layer is H = OH = M, W = OW = 1.
// **Grid** a workgroup of 8 lanes owns ROWS rows m = (b, oy, ox) (x, folded into z) and GROUPS x HALVES panels (y): see matrix_rows, which follows.
// **Host** takes this one for CPU adapters that read storage buffers in vectors (Mesa's llvmpipe from 26 on); operands that the flags leave out are bound to anything and never read.
// **Numbers** products are summed in f32, tap by tap, in the order of k; nothing cancels beyond what the data cancel themselves.
struct Params {
  first_row: u32,
  end_row: u32,
  positions: u32, // OH * OW
  out_width: u32, // OW
  height: u32, // H after upsampling
  width: u32, // W after upsampling
  upsample: u32, // 1: a holds every second row and column of that, rounded up
  kernel_height: u32,
  kernel_width: u32,
  stride: u32,
  pad_top: u32,
  pad_left: u32,
  k4: u32,
  out4: u32,
  a_base: u32,
  residual_base: u32,
  out_base: u32,
  scale: f32,
  panels: u32,
  flags: u32, // 1: bias, 2: row_bias, 4: residual
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<InVec>; // [B][H][W][K4]
@group(0) @binding(2) var<storage, read> w: array<WeightVec>; // [panels][taps][K4 * 4][8]
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [panels * 8]
@group(0) @binding(4) var<storage, read> row_bias: array<vec4<f32>>; // [B][N4]
@group(0) @binding(5) var<storage, read> residual: array<OutVec>; // [B][OH][OW][N4]
@group(0) @binding(6) var<storage, read_write> out: array<OutVec>; // [B][OH][OW][N4]

fn fetch_a(i: u32) -> vec4<f32> {
  return load_in(a[i]);
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
