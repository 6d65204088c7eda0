// out[i, h] = sum_j softmax_j(scale q[i, h] . k[j, h]) v[j, h]: attention with the running maximum and sum of Milakov and Gimelshein (2018, arXiv 1805.02867), so that scores are never stored.
// **Shapes** q [B][TQ][query4], kv [B][TK][key4], out [B][TQ][HEADS * D4], in vectors of four; head h of q, k and v starts at vector q_offset, k_offset and v_offset + h * D4 of its row.
// **Grid** a workgroup of 8 lanes owns 8 * QUERIES neighbouring queries (x) of one head of one batch element (y); a lane owns every eighth of them.
// **Host** for CPU adapters: q and kv are staged as textures 2048 texels wide (see matrix_lanes). TQ and TK are at least 1; the masked keys of a row are the last ones.
// **Numbers** scores, maxima, sums and outputs in f32; exponents are at most 0, the sum at least 1, so nothing overflows or cancels.
struct Params {
  queries: u32,
  keys: u32,
  heads: u32,
  causal: u32,
  query4: u32,
  key4: u32,
  q_offset: u32,
  k_offset: u32,
  v_offset: u32,
  first_batch: u32,
  q_base: u32,
  kv_base: u32,
  out_base: u32,
  scale: f32, // times log2(e)
  first_query: u32,
  end_query: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var q: texture_2d<f32>; // [B][TQ][query4]
@group(0) @binding(2) var kv: texture_2d<f32>; // [B][TK][key4]
@group(0) @binding(3) var<storage, read_write> out: array<OutVec>; // [B][TQ][heads * D4]

// Mesa unrolls loops of up to 32 rounds, and only unrolled loops keep private arrays in registers.
const D4: u32 = OUTER * INNER;

fn texel(i: u32) -> vec2<u32> {
  return vec2<u32>(i & 2047u, i >> 11u);
}

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
        query[r][c][d] = textureLoad(q, texel(start + c * INNER + d), 0) * params.scale;
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
    var score: array<array<f32, KEYS>, QUERIES>;
    for (var j = 0u; j < KEYS; j++) {
      let start = keys0 + min(key + j, params.keys - 1u) * params.key4 + params.k_offset;
      for (var c = 0u; c < OUTER; c++) {
        for (var d = 0u; d < INNER; d++) {
          let k = textureLoad(kv, texel(start + c * INNER + d), 0);
          for (var r = 0u; r < QUERIES; r++) {
            let x = query[r][c][d];
            score[r][j] += x.x * k.x + x.y * k.y + x.z * k.z + x.w * k.w;
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
    for (var j = 0u; j < KEYS; j++) {
      let start = keys0 + min(key + j, params.keys - 1u) * params.key4 + params.v_offset;
      for (var c = 0u; c < OUTER; c++) {
        for (var d = 0u; d < INNER; d++) {
          let v = textureLoad(kv, texel(start + c * INNER + d), 0);
          for (var r = 0u; r < QUERIES; r++) {
            sums[r][c][d] += score[r][j] * v;
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
