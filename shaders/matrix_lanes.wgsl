// out[m, n] = (act(sum_tk a[at(m, t), k] w[n, t, k] + bias[n] + row_bias[b, n]) + residual[m, n]) * scale: conv2d as implicit GEMM over taps t, linear with one tap; with GEGLU (Shazeer 2020, arXiv 2002.05202) value[n] * gelu(gate[n]) instead of act.
// **Shapes** a [B][H][W][A4], second [M][second4], w [panels][taps][K4 * 4][8], bias [panels * 8], row_bias [B][row_bias4], residual and out [B][OH][OW][N4], in vectors of four; a panel is 32 columns, with GEGLU even panels hold values and odd panels the gates of the same columns. A linear layer is H = OH = M, W = OW = 1. K4 = A4 + second4, second only with one tap.
// **Grid** a workgroup of 8 lanes owns ROWS rows m = (b, oy, ox) (x, folded into z) and GROUPS x HALVES panels (y); a lane owns four columns of each of its panels.
// **Host** stages a, second, w, row_bias and residual as textures 2048 texels wide: Mesa's llvmpipe gathers texels with vector instructions but reads storage buffers lane by lane (5 times slower here). Operands that the flags leave out are bound to any texture. What is read outside a picture, a texture or the bias is multiplied by nothing that is stored.
// **Numbers** products are summed in f32, tap by tap, in the order of k; nothing cancels beyond what the data cancel themselves.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var a: texture_2d<f32>; // [B][H][W][A4]
@group(0) @binding(2) var second: texture_2d<f32>; // [M][second4]
@group(0) @binding(3) var w: texture_2d<f32>; // [panels][taps][K4 * 4][8]
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>; // [panels * 8]
@group(0) @binding(5) var row_bias: texture_2d<f32>; // [B][row_bias4]
@group(0) @binding(6) var residual: texture_2d<f32>; // [B][OH][OW][N4]
@group(0) @binding(7) var<storage, read_write> out: array<OutVec>; // [B][OH][OW][N4]

fn texel(i: u32) -> vec2<u32> {
  return vec2<u32>(i & 2047u, i >> 11u);
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row0 = params.first_row + (group.z * groups.x + group.x) * ROWS;
  let panel0 = group.y * GROUPS * HALVES;
  let a4 = params.k4 - params.second4;
  let taps = params.kernel_height * params.kernel_width;
  let stored_height = (params.height + params.upsample) >> params.upsample;
  let stored_width = (params.width + params.upsample) >> params.upsample;
  var picture: array<u32, ROWS>;
  var top: array<u32, ROWS>;
  var left: array<u32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    let row = row0 + r;
    let batch = row / params.positions;
    let position = row - batch * params.positions;
    let y = position / params.out_width;
    picture[r] = batch * stored_height;
    top[r] = select(0x40000000u, y * params.stride - params.pad_top, row < params.end_row);
    left[r] = (position - y * params.out_width) * params.stride - params.pad_left;
  }
  var acc: array<array<array<vec4<f32>, ROWS>, HALVES>, GROUPS>;
  for (var ky = 0u; ky < params.kernel_height; ky++) {
    for (var kx = 0u; kx < params.kernel_width; kx++) {
      var start: array<u32, ROWS>;
      var inside: array<bool, ROWS>;
      for (var r = 0u; r < ROWS; r++) {
        let y = top[r] + ky;
        let x = left[r] + kx;
        inside[r] = y < params.height && x < params.width;
        start[r] = ((picture[r] + (y >> params.upsample)) * stored_width + (x >> params.upsample)) * a4 - params.a_base;
      }
      let tap = ky * params.kernel_width + kx;
      for (var k = 0u; k < params.k4; k++) {
        var v: array<vec4<f32>, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
          if (SECOND == 1u && k >= a4) {
            let at = (row0 + r) * params.second4 + k - a4 - params.second_base;
            v[r] = select(vec4<f32>(), textureLoad(second, texel(at), 0), inside[r]);
          } else {
            v[r] = select(vec4<f32>(), textureLoad(a, texel(start[r] + k), 0), inside[r]);
          }
        }
        for (var g = 0u; g < GROUPS; g++) {
          for (var h = 0u; h < HALVES; h++) {
            let i = (((panel0 + g * HALVES + h) * taps + tap) * params.k4 + k) * 32u + lane;
            let w0 = textureLoad(w, texel(i), 0);
            let w1 = textureLoad(w, texel(i + 8u), 0);
            let w2 = textureLoad(w, texel(i + 16u), 0);
            let w3 = textureLoad(w, texel(i + 24u), 0);
            for (var r = 0u; r < ROWS; r++) {
              acc[g][h][r] = acc[g][h][r] + v[r].x * w0 + v[r].y * w1 + v[r].z * w2 + v[r].w * w3;
            }
          }
        }
      }
    }
  }
  for (var g = 0u; g < GROUPS; g++) {
    let panel = panel0 + g * HALVES;
    let column = panel / HALVES * 8u + lane;
    var shift = vec4<f32>();
    var gate_shift = vec4<f32>();
    if ((params.flags & 1u) != 0u) {
      shift = bias[panel * 8u + lane];
      gate_shift = bias[(panel + HALVES - 1u) * 8u + lane];
    }
    for (var r = 0u; r < ROWS; r++) {
      let row = row0 + r;
      if (row < params.end_row && column < params.out4) {
        var sum = acc[g][0][r] + shift;
        if ((params.flags & 2u) != 0u) {
          sum += textureLoad(row_bias, texel(row / params.positions * params.row_bias4 + params.row_bias_first + column), 0);
        }
        if (HALVES == 2u) {
          sum *= gelu4(acc[g][HALVES - 1u][r] + gate_shift);
        } else {
          sum = activate(sum);
        }
        if ((params.flags & 4u) != 0u) {
          sum += textureLoad(residual, texel(row * params.out4 + column - params.residual_base), 0);
        }
        out[row * params.out4 + column - params.out_base] = store_out(sum * params.scale);
      }
    }
  }
}
