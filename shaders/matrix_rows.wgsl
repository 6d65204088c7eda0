// out = act(a w + bias + row_bias) * scale + residual, or value * gelu(gate): what matrix_lanes and matrix_texels do with the operands that they fetch.
// **Shapes** as in those two.
// **Grid** a workgroup of 8 lanes owns ROWS rows and GROUPS x HALVES panels; a lane owns four columns of each panel. Of a, LOADS vectors are fetched at a time: with LOADS = ROWS / 8 each lane fetches those of its own rows and spread() shows them to all, with LOADS = ROWS all lanes fetch the same.
// **Host** appends this, its lines between //@for and //@end repeated, to one of the two behind a generated spread(), which needs subgroups of eight where LOADS < ROWS.
// **Numbers** as in those two. Rows and panels beyond the end are computed from the first ones and not stored.
// [GROUPS][HALVES][ROWS][8]: every lane its own, so that the loop over rows at the end need not be unrolled, which compiles for long.
var<workgroup> sums: array<vec4<f32>, GROUPS * HALVES * ROWS * 8u>;

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row0 = params.first_row + (group.z * groups.x + group.x) * ROWS;
  let panel0 = group.y * GROUPS * HALVES;
  let a4 = params.k4 - params.second4;
  let taps = params.kernel_height * params.kernel_width;
  let stored_height = (params.height + params.upsample) >> params.upsample;
  let stored_width = (params.width + params.upsample) >> params.upsample;
  var picture: array<u32, LOADS>;
  var top: array<u32, LOADS>;
  var left: array<u32, LOADS>;
  for (var r = 0u; r < LOADS; r++) {
    let row = row0 + select(r, r * 8u + lane, LOADS < ROWS);
    let batch = row / params.positions;
    let position = row - batch * params.positions;
    let y = position / params.out_width;
    picture[r] = batch * stored_height;
    top[r] = select(0x40000000u, y * params.stride - params.pad_top, row < params.end_row);
    left[r] = (position - y * params.out_width) * params.stride - params.pad_left;
  }
  //@for g in GROUPS
  //@for h in HALVES
  //@for r in ROWS
  var acc_{g}_{h}_{r} = vec4<f32>();
  //@end
  //@end
  //@end
  for (var ky = 0u; ky < params.kernel_height; ky++) {
    for (var kx = 0u; kx < params.kernel_width; kx++) {
      var start: array<u32, LOADS>;
      var other: array<u32, LOADS>;
      var inside: array<bool, LOADS>;
      for (var r = 0u; r < LOADS; r++) {
        let y = top[r] + ky;
        let x = left[r] + kx;
        inside[r] = y < params.height && x < params.width;
        let pixel = (picture[r] + (y >> params.upsample)) * stored_width + (x >> params.upsample);
        start[r] = select(0u, pixel * a4 - params.a_base, inside[r]);
        if (SECOND == 1u) {
          other[r] = select(0u, pixel * params.second4 - params.second_base, inside[r]);
        }
      }
      let tap = ky * params.kernel_width + kx;
      for (var k = 0u; k < params.k4; k++) {
        var loaded: array<vec4<f32>, LOADS>;
        for (var r = 0u; r < LOADS; r++) {
          if (SECOND == 1u && k >= a4) {
            loaded[r] = select(vec4<f32>(), fetch_second(other[r] + k - a4), inside[r]);
          } else {
            loaded[r] = select(vec4<f32>(), fetch_a(start[r] + k), inside[r]);
          }
        }
        let v = spread(loaded);
        //@for g in GROUPS
        //@for h in HALVES
        let panel_{g}_{h} = min(panel0 + {g}u * HALVES + {h}u, params.panels - 1u);
        let at_{g}_{h} = ((panel_{g}_{h} * taps + tap) * params.k4 + k) * 32u + lane;
        let x_{g}_{h} = fetch_w(at_{g}_{h});
        let y_{g}_{h} = fetch_w(at_{g}_{h} + 8u);
        let z_{g}_{h} = fetch_w(at_{g}_{h} + 16u);
        let w_{g}_{h} = fetch_w(at_{g}_{h} + 24u);
        //@for r in ROWS
        acc_{g}_{h}_{r} = fma(vec4<f32>(v[{r}].x), x_{g}_{h}, acc_{g}_{h}_{r});
        acc_{g}_{h}_{r} = fma(vec4<f32>(v[{r}].y), y_{g}_{h}, acc_{g}_{h}_{r});
        acc_{g}_{h}_{r} = fma(vec4<f32>(v[{r}].z), z_{g}_{h}, acc_{g}_{h}_{r});
        acc_{g}_{h}_{r} = fma(vec4<f32>(v[{r}].w), w_{g}_{h}, acc_{g}_{h}_{r});
        //@end
        //@end
        //@end
      }
    }
  }
  //@for g in GROUPS
  //@for h in HALVES
  //@for r in ROWS
  sums[(({g}u * HALVES + {h}u) * ROWS + {r}u) * 8u + lane] = acc_{g}_{h}_{r};
  //@end
  //@end
  //@end
  let end = min(row0 + ROWS, params.end_row);
  for (var g = 0u; g < GROUPS; g++) {
    let panel = panel0 + g * HALVES;
    let column = panel / HALVES * 8u + lane;
    var shift = vec4<f32>();
    var gate_shift = vec4<f32>();
    if ((params.flags & 1u) != 0u) {
      shift = bias[panel * 8u + lane];
      gate_shift = bias[(panel + HALVES - 1u) * 8u + lane];
    }
    if (column >= params.out4) {
      continue;
    }
    // From a row that no compiler knows: Mesa would unroll eight rounds.
    for (var row = row0; row < end; row++) {
      let r = row - row0;
      var sum = sums[(g * HALVES * ROWS + r) * 8u + lane] + shift;
      if ((params.flags & 2u) != 0u) {
        sum += fetch_row_bias(row / params.positions * params.row_bias4 + params.row_bias_first + column);
      }
      if (HALVES == 2u) {
        sum *= open4(sums[((g * HALVES + HALVES - 1u) * ROWS + r) * 8u + lane] + gate_shift);
      } else {
        sum = activate(sum);
      }
      sum *= params.scale;
      if ((params.flags & 4u) != 0u) {
        sum += fetch_residual(row * params.out4 + column - params.residual_base);
      }
      out[row * params.out4 + column - params.out_base] = store_out(sum);
    }
  }
}
