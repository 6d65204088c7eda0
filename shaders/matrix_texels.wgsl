// out[m, n] = act(sum_tk a[at(m, t), k] w[n, t, k] + bias[n] + row_bias[b, n]) * scale + residual[m, n]: conv2d as implicit GEMM over taps t, linear with one tap; with GEGLU (Shazeer 2020, arXiv 2002.05202) value[n] * gelu(gate[n]) instead of act.
// **Shapes** a [B][H][W][A4], second [B][H][W][second4], w [panels][taps][K4 * 4][8], bias [panels * 8], row_bias [B][row_bias4], residual and out [B][OH][OW][N4], in vectors of four; a panel is 32 columns, with GEGLU even panels hold values and odd panels the gates of the same columns. A linear layer is H = OH = M, W = OW = 1. K4 = A4 + second4.
// **Grid** a workgroup of 8 lanes owns ROWS rows m = (b, oy, ox) (x, folded into z) and GROUPS x HALVES panels (y): see matrix_rows, which follows.
// **Host** stages a, second, w, row_bias and residual as textures 2048 texels wide: older releases of Mesa's llvmpipe gather texels with vector instructions but read storage buffers lane by lane. Operands that the flags leave out are bound to any texture.
// **Numbers** products are summed in f32, tap by tap, in the order of k; nothing cancels beyond what the data cancel themselves.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var a: texture_2d<f32>; // [B][H][W][A4]
@group(0) @binding(2) var second: texture_2d<f32>; // [B][H][W][second4]
@group(0) @binding(3) var w: texture_2d<f32>; // [panels][taps][K4 * 4][8]
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>; // [panels * 8]
@group(0) @binding(5) var row_bias: texture_2d<f32>; // [B][row_bias4]
@group(0) @binding(6) var residual: texture_2d<f32>; // [B][OH][OW][N4]
@group(0) @binding(7) var<storage, read_write> out: array<OutVec>; // [B][OH][OW][N4]

fn texel(i: u32) -> vec2<u32> {
  return vec2<u32>(i & 2047u, i >> 11u);
}

fn fetch_a(i: u32) -> vec4<f32> {
  return textureLoad(a, texel(i), 0);
}

fn fetch_second(i: u32) -> vec4<f32> {
  return textureLoad(second, texel(i), 0);
}

fn fetch_w(i: u32) -> vec4<f32> {
  return textureLoad(w, texel(i), 0);
}

fn fetch_row_bias(i: u32) -> vec4<f32> {
  return textureLoad(row_bias, texel(i), 0);
}

fn fetch_residual(i: u32) -> vec4<f32> {
  return textureLoad(residual, texel(i), 0);
}
