// out[i, h] = sum_j softmax_j(scale q[i, h] . k[j, h] + bias[h, i, j]) v[j, h], bias where BIAS is 1: attention with the running maximum and sum of Milakov and Gimelshein (2018, arXiv 1805.02867), so that scores are never stored.
// **Shapes** q [B][TQ][query4], kv [B][TK][key4], out [B][TQ][HEADS * D4], in vectors of four; head h of q, k and v starts at vector q_offset, k_offset and v_offset + h * D4 of its row.
// **Grid** a workgroup of 8 lanes owns 8 * QUERIES neighbouring queries (x) of one head of one batch element (y): see attention_rows, which follows.
// **Host** for other CPU adapters: q and kv are staged as textures 2048 texels wide (see matrix_texels). TQ and TK are at least 1; the masked keys of a row are the last ones.
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
@group(0) @binding(1) var q: texture_2d<f32>; // [B][TQ][query4]
@group(0) @binding(2) var kv: texture_2d<f32>; // [B][TK][key4]
//@for b in BIAS
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [B or 1][heads or 1][TQ or 1][keys4 * 4]
//@end
@group(0) @binding({OUT}) var<storage, read_write> out: array<OutVec>; // [B][TQ][heads * D4]

fn texel(i: u32) -> vec2<u32> {
  return vec2<u32>(i & 2047u, i >> 11u);
}

fn fetch_q(i: u32) -> vec4<f32> {
  return textureLoad(q, texel(i), 0);
}

fn fetch_kv(i: u32) -> vec4<f32> {
  return textureLoad(kv, texel(i), 0);
}
