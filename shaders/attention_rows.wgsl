// out[i, h] = sum_j softmax_j(scale q[i, h] . k[j, h]) v[j, h]: what attention_lanes and attention_texels do with what they fetch.
// **Shapes** as in those two; D4 = OUTER * INNER.
// **Grid** a workgroup of 8 lanes owns 8 * QUERIES neighbouring queries; a lane owns every eighth of them. KEYS keys are taken at a time: with LOADS < KEYS each lane fetches the vectors of its own keys and spread() shows them to all, else all lanes fetch the same.
// **Host** appends this to one of the two behind a generated spread(), which needs subgroups of eight where LOADS < KEYS.
// **Numbers** as in those two. Mesa unrolls loops of up to 32 rounds, and only unrolled loops keep private arrays in registers.
const D4: u32 = OUTER * INNER;

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let batch = params.first_batch + group.y / params.heads;
  let head = group.y % params.heads;
  let first = params.first_query + group.x * 8u * QUERIES;
  var query: array<array<array<vec4<f32>, INNER>, OUTER>, QUERIES>;
  for (var r = 0u; r < QUERIES; r++) {
    let row = min(first + r * 8u + lane, params.end_query - 1u);
    let start = (batch * params.queries + row) * params.query4 + params.q_offset + head * D4 - params.q_base;
    for (var c = 0u; c < OUTER; c++) {
      for (var d = 0u; d < INNER; d++) {
        query[r][c][d] = fetch_q(start + c * INNER + d) * params.scale;
      }
    }
  }
  var sums: array<array<array<vec4<f32>, INNER>, OUTER>, QUERIES>;
  var highest: array<f32, QUERIES>;
  var total: array<f32, QUERIES>;
  for (var r = 0u; r < QUERIES; r++) {
    highest[r] = -1e30;
    total[r] = 0.0;
  }
  let last_visible = first + 8u * QUERIES;
  let end = select(params.keys, min(params.keys, last_visible), params.causal == 1u);
  let keys0 = batch * params.keys * params.key4 + head * D4 - params.kv_base;
  for (var key = 0u; key < end; key += KEYS) {
    var rows: array<u32, LOADS>;
    for (var l = 0u; l < LOADS; l++) {
      let place = key + select(l, l * 8u + lane, LOADS < KEYS);
      rows[l] = keys0 + min(place, params.keys - 1u) * params.key4;
    }
    var score: array<array<f32, KEYS>, QUERIES>;
    for (var c = 0u; c < OUTER; c++) {
      for (var d = 0u; d < INNER; d++) {
        var loaded: array<vec4<f32>, LOADS>;
        for (var l = 0u; l < LOADS; l++) {
          loaded[l] = fetch_kv(rows[l] + params.k_offset + c * INNER + d);
        }
        let k = spread(loaded);
        for (var r = 0u; r < QUERIES; r++) {
          let x = query[r][c][d];
          for (var j = 0u; j < KEYS; j++) {
            score[r][j] = fma(x.w, k[j].w, fma(x.z, k[j].z, fma(x.y, k[j].y, fma(x.x, k[j].x, score[r][j]))));
          }
        }
      }
    }
    for (var r = 0u; r < QUERIES; r++) {
      let visible = select(params.keys, min(params.keys, first + r * 8u + lane + 1u), params.causal == 1u);
      var peak = highest[r];
      for (var j = 0u; j < KEYS; j++) {
        peak = select(peak, max(peak, score[r][j]), key + j < visible);
      }
      let shrink = exp2(highest[r] - peak);
      highest[r] = peak;
      var sum = total[r] * shrink;
      for (var j = 0u; j < KEYS; j++) {
        score[r][j] = select(0.0, exp2(min(score[r][j] - peak, 0.0)), key + j < visible);
        sum += score[r][j];
      }
      total[r] = sum;
      for (var c = 0u; c < OUTER; c++) {
        for (var d = 0u; d < INNER; d++) {
          sums[r][c][d] *= shrink;
        }
      }
    }
    for (var c = 0u; c < OUTER; c++) {
      for (var d = 0u; d < INNER; d++) {
        var loaded: array<vec4<f32>, LOADS>;
        for (var l = 0u; l < LOADS; l++) {
          loaded[l] = fetch_kv(rows[l] + params.v_offset + c * INNER + d);
        }
        let v = spread(loaded);
        for (var r = 0u; r < QUERIES; r++) {
          for (var j = 0u; j < KEYS; j++) {
            sums[r][c][d] = fma(vec4<f32>(score[r][j]), v[j], sums[r][c][d]);
          }
        }
      }
    }
  }
  for (var r = 0u; r < QUERIES; r++) {
    let row = first + r * 8u + lane;
    if (row < params.end_query) {
      let start = ((batch * params.queries + row) * params.heads + head) * D4 - params.out_base;
      let share = 1.0 / total[r];
      for (var c = 0u; c < OUTER; c++) {
        for (var d = 0u; d < INNER; d++) {
          out[start + c * INNER + d] = store_out(sums[r][c][d] * share);
        }
      }
    }
  }
}
