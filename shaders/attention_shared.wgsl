// out[i, h] = sum_j softmax_j(scale q[i, h] . k[j, h] + bias[h, i, j]) v[j, h], bias where BIAS is 1: attention with the running maximum and sum of Milakov and Gimelshein (2018, arXiv 1805.02867), so that scores are never stored.
// **Shapes** q [B][TQ][query4], kv [B][TK][key4], out [B][TQ][heads * D4], in vectors of four; head h of q, k and v starts at vector q_offset, k_offset and v_offset + h * D4 of its row.
// **Grid** a workgroup of 16 x 8 invocations keeps 16 * ROWS queries (x) of one head of one batch element (y) in workgroup memory and takes 32 * QUADS keys at a time; an invocation owns ROWS queries with every eighth of the keys, then with every eighth of the output vectors.
// **Host** gives ROWS, 1 to 4, so that ROWS * VECTORS output vectors fit into registers, VECTORS = ceil(D4 / 8), and writes `row_maxima`, `row_totals` and `place`: over subgroups where there are, so that the eight lanes of a row are in one. TQ and TK are at least 1; the masked keys of a row are the last ones.
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
  //@for b in BIAS
  bias_batch: u32, // numbers from one to the next, 0 where all share
  bias_head: u32,
  bias_query: u32,
  bias_base: u32,
  //@end
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<InVec>; // [B][TQ][query4]
@group(0) @binding(2) var<storage, read> kv: array<InVec>; // [B][TK][key4]
//@for b in BIAS
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [B or 1][heads or 1][TQ or 1][keys4 * 4]
//@end
@group(0) @binding({OUT}) var<storage, read_write> out: array<OutVec>; // [B][TQ][heads * D4]

const QUERIES: u32 = 16u * ROWS;
const KEYS: u32 = 32u * QUADS;
const MASKED: f32 = -1e30;

var<workgroup> tile_q: array<InVec, D4 * QUERIES>; // [D4][QUERIES]
var<workgroup> tile_k: array<InVec, D4 * KEYS>; // [D4][KEYS]
var<workgroup> shares: array<vec4<f32>, 8u * QUADS * QUERIES>; // [QUADS][8 lanes][QUERIES]: the weights of keys 32 * quad + 8 * j + lane

//@for b in BIAS
// Times log2(e), as the scores; never so low that a row of which everything is hidden would lose its weights.
fn bias_of(row: u32, key: u32) -> f32 {
  return max(bias[row + min(key, params.keys - 1u)] * 1.4426950408889634, -1e29);
}
//@end

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, who: Who) {
  let index = place(who);
  let batch = params.first_batch + group.y / params.heads;
  let head = group.y % params.heads;
  let first = params.first_query + group.x * QUERIES;
  let lane = index & 7u;
  let line = index >> 3u;
  let queries0 = batch * params.queries * params.query4 + params.q_offset + head * D4 - params.q_base;
  let keys0 = batch * params.keys * params.key4 + head * D4 - params.kv_base;
  for (var i = index; i < D4 * QUERIES; i += 128u) {
    let row = min(first + i / D4, params.end_query - 1u);
    tile_q[i % D4 * QUERIES + i / D4] = q[queries0 + row * params.query4 + i % D4];
  }
  var sums: array<array<vec4<f32>, VECTORS>, ROWS>;
  var highest = vec4<f32>(MASKED);
  var total = vec4<f32>();
  let end = select(params.keys, min(params.keys, first + QUERIES), params.causal == 1u);
  for (var key = 0u; key < end; key += KEYS) {
    for (var i = index; i < D4 * KEYS; i += 128u) {
      let row = min(key + i / D4, params.keys - 1u);
      tile_k[i % D4 * KEYS + i / D4] = kv[keys0 + params.k_offset + row * params.key4 + i % D4];
    }
    workgroupBarrier();
    var dots: array<array<vec4<f32>, QUADS>, ROWS>;
    for (var d = 0u; d < D4; d++) {
      for (var quad = 0u; quad < QUADS; quad++) {
        let at = d * KEYS + quad * 32u + lane;
        let k0 = load_in(tile_k[at]);
        let k1 = load_in(tile_k[at + 8u]);
        let k2 = load_in(tile_k[at + 16u]);
        let k3 = load_in(tile_k[at + 24u]);
        for (var r = 0u; r < ROWS; r++) {
          let x = load_in(tile_q[d * QUERIES + r * 16u + line]);
          dots[r][quad] += vec4<f32>(dot(x, k0), dot(x, k1), dot(x, k2), dot(x, k3));
        }
      }
    }
    var peaks = highest;
    for (var r = 0u; r < ROWS; r++) {
      let query = first + r * 16u + line;
      let visible = select(params.keys, min(params.keys, query + 1u), params.causal == 1u);
      for (var quad = 0u; quad < QUADS; quad++) {
        let at = vec4<u32>(key + quad * 32u + lane) + vec4<u32>(0u, 8u, 16u, 24u);
        var score = dots[r][quad] * params.scale;
        //@for b in BIAS
        let bias_row = batch * params.bias_batch + head * params.bias_head + min(query, params.end_query - 1u) * params.bias_query - params.bias_base;
        score += vec4<f32>(bias_of(bias_row, at.x), bias_of(bias_row, at.y), bias_of(bias_row, at.z), bias_of(bias_row, at.w));
        //@end
        score = select(vec4<f32>(MASKED), score, at < vec4<u32>(visible));
        dots[r][quad] = score;
        peaks[r] = max(peaks[r], max(max(score.x, score.y), max(score.z, score.w)));
      }
    }
    peaks = row_maxima(peaks, index);
    let shrink = exp2(highest - peaks);
    highest = peaks;
    total *= shrink;
    for (var r = 0u; r < ROWS; r++) {
      for (var quad = 0u; quad < QUADS; quad++) {
        let score = dots[r][quad];
        let weights = select(vec4<f32>(), exp2(score - highest[r]), score > vec4<f32>(MASKED));
        total[r] += weights.x + weights.y + weights.z + weights.w;
        shares[(quad * 8u + lane) * QUERIES + r * 16u + line] = weights;
      }
      for (var c = 0u; c < VECTORS; c++) {
        sums[r][c] *= shrink[r];
      }
    }
    workgroupBarrier();
    for (var v = 0u; v < 8u * QUADS; v++) {
      var weights: array<vec4<f32>, ROWS>;
      for (var r = 0u; r < ROWS; r++) {
        weights[r] = shares[v * QUERIES + r * 16u + line];
      }
      for (var j = 0u; j < 4u; j++) {
        let row = min(key + (v >> 3u) * 32u + j * 8u + (v & 7u), params.keys - 1u);
        let start = keys0 + params.v_offset + row * params.key4;
        for (var c = 0u; c < VECTORS; c++) {
          var value = vec4<f32>();
          if (c * 8u + lane < D4) {
            value = load_in(kv[start + c * 8u + lane]);
          }
          for (var r = 0u; r < ROWS; r++) {
            sums[r][c] = fma(vec4<f32>(weights[r][j]), value, sums[r][c]);
          }
        }
      }
    }
  }
  total = row_totals(total, index);
  for (var r = 0u; r < ROWS; r++) {
    let query = first + r * 16u + line;
    let start = ((batch * params.queries + query) * params.heads + head) * D4 - params.out_base;
    let share = 1.0 / total[r];
    for (var c = 0u; c < VECTORS; c++) {
      if (query < params.end_query && c * 8u + lane < D4) {
        out[start + c * 8u + lane] = store_out(sums[r][c] * share);
      }
    }
  }
}
