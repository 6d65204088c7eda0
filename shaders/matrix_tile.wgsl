struct Params {
  first_row: u32, end_row: u32, positions: u32, out_width: u32, height: u32, width: u32, upsample: u32, kernel_height: u32,
  kernel_width: u32, stride: u32, pad_top: u32, pad_left: u32, k4: u32, out4: u32, a_base: u32, residual_base: u32, out_base: u32, scale: f32, panels: u32, pad: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<InVec>;
@group(0) @binding(2) var<storage, read> w: array<WeightVec>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> row_bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> residual: array<OutVec>;
@group(0) @binding(6) var<storage, read_write> out: array<OutVec>;
fn erf4(x: vec4<f32>) -> vec4<f32> {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let p = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return sign(x) * (1.0 - p * exp(-x * x));
}
fn gelu4(x: vec4<f32>) -> vec4<f32> { return 0.5 * x * (1.0 + erf4(x * 0.70710678)); }
fn activate(x: vec4<f32>) -> vec4<f32> {
    switch ACTIVATION {
        case 1u: { return x / (1.0 + exp(-x)); }
        case 2u: { return gelu4(x); }
        case 3u: { return x / (1.0 + exp(-1.702 * x)); }
        default: { return x; }
    }
}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = group.z * groups.x + group.x;
  for (var rr = 0u; rr < 8u; rr++) {
    for (var pp = 0u; pp < 2u; pp += HALVES) {
    let row = params.first_row + tile * 64u + rr * 8u + lane / 8u;
    let l = lane % 8u;
    let panel = group.y * 2u + pp;
    if (row >= params.end_row || panel >= params.panels) { continue; }
    let b = row / params.positions;
    let pos = row % params.positions;
    let y0 = pos / params.out_width; let x0 = pos % params.out_width;
    let sh = (params.height + params.upsample) >> params.upsample;
    let sw = (params.width + params.upsample) >> params.upsample;
    let taps = params.kernel_height * params.kernel_width;
    var acc = vec4<f32>(); var acc2 = vec4<f32>();
    for (var ky = 0u; ky < params.kernel_height; ky++) { for (var kx = 0u; kx < params.kernel_width; kx++) {
      let y = y0 * params.stride + ky - params.pad_top;
      let x = x0 * params.stride + kx - params.pad_left;
      if (y >= params.height || x >= params.width) { continue; }
      let s = ((b * sh + (y >> params.upsample)) * sw + (x >> params.upsample)) * params.k4 - params.a_base;
      let tap = ky * params.kernel_width + kx;
      for (var k = 0u; k < params.k4; k++) {
        let v = load_in(a[s + k]);
        let i = ((panel * taps + tap) * params.k4 + k) * 32u + l;
        acc += v.x * load_weight(w[i]) + v.y * load_weight(w[i + 8u]) + v.z * load_weight(w[i + 16u]) + v.w * load_weight(w[i + 24u]);
        if (HALVES == 2u) {
          let j = (((panel + 1u) * taps + tap) * params.k4 + k) * 32u + l;
          acc2 += v.x * load_weight(w[j]) + v.y * load_weight(w[j + 8u]) + v.z * load_weight(w[j + 16u]) + v.w * load_weight(w[j + 24u]);
        }
      }
    } }
    let column = panel / HALVES * 8u + l;
    if (column >= params.out4) { continue; }
    if (BIAS == 1u) { acc += bias[panel * 8u + l]; acc2 += bias[(panel + HALVES - 1u) * 8u + l]; }
    if (ROW_BIAS == 1u) { acc += row_bias[b * params.out4 + column]; }
    if (HALVES == 2u) { acc *= gelu4(acc2); } else { acc = activate(acc); }
    let o = row * params.out4 + column;
    if (RESIDUAL == 1u) { acc += load_out(residual[o - params.residual_base]); }
    out[o - params.out_base] = store_out(acc * params.scale);
    }
  }
}
