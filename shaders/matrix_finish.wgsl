// out[m, n] = act(sum[m, n] + bias[n] + row_bias[b, n]) * scale + residual[m, n]; with HALVES = 2 (GEGLU, Shazeer 2020, arXiv 2002.05202) value * gelu(gate) instead of act.
// **Shapes** four sums of one row, with HALVES = 2 those of a value panel and of its gate panel; the bindings as the shader that this is prepended to declares them.
// **Grid** none: a function prepended to matrix_tile, matrix_coop and matrix_reduce.
// **Host** sets HALVES; row_bias rows are row_bias4 vectors wide, of which those from row_bias_first on belong to this product.
// **Numbers** f32 until the store; see matrix_epilogue for the activations.
fn finish(row: u32, panel: u32, lane: u32, first: vec4<f32>, second: vec4<f32>) {
  let column = panel / HALVES * 8u + lane;
  if (row >= params.end_row || column >= params.out4) {
    return;
  }
  var sum = first;
  var gate = second;
  if ((params.flags & 1u) != 0u) {
    sum += bias[panel * 8u + lane];
    gate += bias[(panel + HALVES - 1u) * 8u + lane];
  }
  if ((params.flags & 2u) != 0u) {
    sum += row_bias[row / params.positions * params.row_bias4 + params.row_bias_first + column];
  }
  if (HALVES == 2u) {
    sum *= open4(gate);
  } else {
    sum = activate(sum);
  }
  sum *= params.scale;
  if ((params.flags & 4u) != 0u) {
    sum += load_out(residual[row * params.out4 + column - params.residual_base]);
  }
  out[row * params.out4 + column - params.out_base] = store_out(sum);
}
