// act(x) = x | x sigmoid(x) | x Phi(x) (GELU, arXiv 1606.08415) | x sigmoid(1.702 x) | GELU by tanh | max(x, 0) | max(x, 0.2 x): what the matrix kernels do to a sum before they store it.
// **Shapes** vectors of four sums of one row.
// **Grid** none: the parameters and functions prepended to the other matrix shaders.
// **Host** sets ACTIVATION to 0 to 6, in the order above; gates take GELU for 0.
// **Numbers** erf is 2e-7 from the true value in f32, so GELU is that times |x| / 2 off; exponents are kept below 80.
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
  k4: u32, // K4 of a and second together
  out4: u32,
  a_base: u32,
  residual_base: u32,
  out_base: u32,
  scale: f32,
  panels: u32,
  flags: u32, // 1: bias, 2: row_bias, 4: residual
  second4: u32, // K4 of second, 0: there is none
  second_base: u32,
  row_bias4: u32, // vectors of a row of row_bias
  row_bias_first: u32, // the first of them that is added
  splits: u32, // parts of the sum over k, each with partial sums of its own
  partial_rows: u32, // rows of one part's partial sums
  partial4: u32, // vectors of one of those rows
}

// 1 - (a1 t + .. + a5 t^5) exp(-x^2), t = 1 / (1 + p x): Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7.
fn erf4(v: vec4<f32>) -> vec4<f32> {
  let x = abs(v);
  let t = 1.0 / (1.0 + 0.3275911 * x);
  let s = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return sign(v) * (1.0 - s * exp(-x * x));
}

fn sigmoid4(v: vec4<f32>) -> vec4<f32> {
  return 1.0 / (1.0 + exp(min(-v, vec4<f32>(80.0))));
}

fn gelu4(v: vec4<f32>) -> vec4<f32> {
  return 0.5 * v * (1.0 + erf4(v * 0.70710678118654752));
}

// tanh(u) = 2 sigmoid(2 u) - 1, u = sqrt(2 / pi) (v + 0.044715 v^3).
fn gelu_tanh4(v: vec4<f32>) -> vec4<f32> {
  return v * sigmoid4(1.5957691216057308 * (v + 0.044715 * v * v * v));
}

// What becomes of a gate: GELU where no activation is named.
fn open4(v: vec4<f32>) -> vec4<f32> {
  if (ACTIVATION == 0u) { return gelu4(v); }
  return activate(v);
}

fn activate(v: vec4<f32>) -> vec4<f32> {
  if (ACTIVATION == 1u) { return v * sigmoid4(v); }
  if (ACTIVATION == 2u) { return gelu4(v); }
  if (ACTIVATION == 3u) { return v * sigmoid4(1.702 * v); }
  if (ACTIVATION == 4u) { return gelu_tanh4(v); }
  if (ACTIVATION == 5u) { return max(v, vec4<f32>()); }
  if (ACTIVATION == 6u) { return max(v, 0.2 * v); }
  return v;
}
