// out[i, h] = sum_j softmax_j(scale q[i, h] . k[j, h] + bias[h, i, j]) v[j, h], bias where BIAS is 1: attention with the running maximum and sum of Milakov and Gimelshein (2018, arXiv 1805.02867), so that scores are never stored.
// **Shapes** q [B][TQ][query4], kv [B][TK][key4], out [B][TQ][HEADS * D4], in vectors of four; head h of q, k and v starts at vector q_offset, k_offset and v_offset + h * D4 of its row.
// **Grid** a workgroup of 16 x 8 invocations owns 16 * ROWS queries (x) of one head of one batch element (y) and takes 32 keys at a time; an invocation owns ROWS queries with every eighth of the keys, then with every eighth of the output vectors.
// **Host** gives ROWS so that ROWS * VECTORS output vectors fit into registers, VECTORS = ceil(D4 / 8). TQ and TK are at least 1; the masked keys of a row are the last ones.
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
const MASKED: f32 = -1e30;

var<workgroup> tile_q: array<vec4<f32>, 4u * QUERIES>; // [4 vectors][QUERIES]
var<workgroup> tile_k: array<vec4<f32>, 128>; // [4 vectors][32 keys]
var<workgroup> scores: array<vec4<f32>, 8u * QUERIES>; // [8 vectors of keys][QUERIES]: key v * 4 + lane of vector v

//@for b in BIAS
// Times log2(e), as the scores; never so low that a row of which everything is hidden would lose its weights.
fn bias_of(row: u32, key: u32) -> f32 {
  return max(bias[row + min(key, params.keys - 1u)] * 1.4426950408889634, -1e29);
}
//@end

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  let batch = params.first_batch + group.y / params.heads;
  let head = group.y % params.heads;
  let first = params.first_query + group.x * QUERIES;
  let lane = index & 7u;
  let line = index >> 3u;
  let queries0 = batch * params.queries * params.query4 + params.q_offset + head * D4 - params.q_base;
  let keys0 = batch * params.keys * params.key4 + head * D4 - params.kv_base;
  var sums: array<array<vec4<f32>, VECTORS>, ROWS>;
  var highest: array<f32, ROWS>;
  var total: array<f32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    highest[r] = MASKED;
    total[r] = 0.0;
  }
  let end = select(params.keys, min(params.keys, first + QUERIES), params.causal == 1u);
  for (var key = 0u; key < end; key += 32u) {
    var dots: array<vec4<f32>, ROWS>;
    for (var d = 0u; d < D4; d += 4u) {
      for (var i = index; i < 4u * QUERIES; i += 128u) {
        let part = d + (i & 3u);
        let row = min(first + (i >> 2u), params.end_query - 1u);
        var value = vec4<f32>();
        if (part < D4) {
          value = load_in(q[queries0 + row * params.query4 + part]);
        }
        tile_q[(i & 3u) * QUERIES + (i >> 2u)] = value * params.scale;
      }
      let part = d + (index & 3u);
      let row = min(key + (index >> 2u), params.keys - 1u);
      var value = vec4<f32>();
      if (part < D4) {
        value = load_in(kv[keys0 + params.k_offset + row * params.key4 + part]);
      }
      tile_k[(index & 3u) * 32u + (index >> 2u)] = value;
      workgroupBarrier();
      for (var i = 0u; i < 4u; i++) {
        let k0 = tile_k[i * 32u + lane * 4u];
        let k1 = tile_k[i * 32u + lane * 4u + 1u];
        let k2 = tile_k[i * 32u + lane * 4u + 2u];
        let k3 = tile_k[i * 32u + lane * 4u + 3u];
        for (var r = 0u; r < ROWS; r++) {
          let x = tile_q[i * QUERIES + r * 16u + line];
          dots[r] += vec4<f32>(dot(x, k0), dot(x, k1), dot(x, k2), dot(x, k3));
        }
      }
      workgroupBarrier();
    }
    for (var r = 0u; r < ROWS; r++) {
      let query = first + r * 16u + line;
      let visible = select(params.keys, min(params.keys, query + 1u), params.causal == 1u);
      let at = vec4<u32>(key + lane * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
      //@for b in BIAS
      let bias_row = batch * params.bias_batch + head * params.bias_head + min(query, params.end_query - 1u) * params.bias_query - params.bias_base;
      dots[r] += vec4<f32>(bias_of(bias_row, at.x), bias_of(bias_row, at.y), bias_of(bias_row, at.z), bias_of(bias_row, at.w));
      //@end
      dots[r] = select(vec4<f32>(MASKED), dots[r], at < vec4<u32>(visible));
      scores[lane * QUERIES + r * 16u + line] = dots[r];
    }
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
      var peaks = vec4<f32>(highest[r]);
      for (var v = 0u; v < 8u; v++) {
        peaks = max(peaks, scores[v * QUERIES + r * 16u + line]);
      }
      let peak = max(max(peaks.x, peaks.y), max(peaks.z, peaks.w));
      let shrink = exp2(highest[r] - peak);
      highest[r] = peak;
      total[r] *= shrink;
      for (var c = 0u; c < VECTORS; c++) {
        sums[r][c] *= shrink;
      }
    }
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
      let weights = select(vec4<f32>(), exp2(dots[r] - highest[r]), dots[r] > vec4<f32>(MASKED));
      scores[lane * QUERIES + r * 16u + line] = weights;
    }
    workgroupBarrier();
    for (var v = 0u; v < 8u; v++) {
      var weights: array<vec4<f32>, ROWS>;
      for (var r = 0u; r < ROWS; r++) {
        weights[r] = scores[v * QUERIES + r * 16u + line];
        total[r] += weights[r].x + weights[r].y + weights[r].z + weights[r].w;
      }
      for (var j = 0u; j < 4u; j++) {
        let start = keys0 + params.v_offset + min(key + v * 4u + j, params.keys - 1u) * params.key4;
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
