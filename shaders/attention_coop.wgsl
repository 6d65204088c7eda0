// out[i, h] = sum_j softmax_j(scale q[i, h] . k[j, h]) v[j, h]: attention with a running maximum and sum (Milakov and Gimelshein 2018, arXiv 1805.02867), its two products on cooperative matrices of SIZE x SIZE.
// **Shapes** q [B][TQ][query4], kv [B][TK][key4], out [B][TQ][heads * D4], in vectors of four halves; head h of q, k and v starts at vector q_offset, k_offset and v_offset + h * D4 of its row.
// **Grid** a workgroup of SUBGROUPS subgroups owns SUBGROUPS * BLOCKS * SIZE neighbouring queries (x) of one head of one batch element (y) and takes KEYS keys at a time; a subgroup owns BLOCKS blocks of SIZE queries and keeps them and their sums in matrices; SUBGROUP / ROWS lanes own a row's weights.
// **Host** unrolls the lines between //@for and //@end, and writes `put`, which stores halves as the matrices read them, and `meet`, the barrier of a subgroup's own memory. All subgroups have SUBGROUP lanes. DEPTH * SIZE >= 4 * D4, KEYS is a multiple of SIZE, the scale is positive.
// **Numbers** scores, maxima and sums in f32. A row's reference is at most 12 octaves below its maximum, so that weights are at most 4096 in halves; it is raised, and the sums shrunk through workgroup memory, only when some row of the workgroup passes that. The sum is of the rounded weights.
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
@group(0) @binding(1) var<storage, read> q: array<InVec>; // [B][TQ][query4]
@group(0) @binding(2) var<storage, read> kv: array<InVec>; // [B][TK][key4]
@group(0) @binding(3) var<storage, read_write> out: array<OutVec>; // [B][TQ][heads * D4]

const MASKED: f32 = -1e30;
const SLACK: f32 = 12.0; // octaves
const SIZE4: u32 = SIZE / 4u;
const ROWS: u32 = BLOCKS * SIZE;
const PARTS: u32 = SUBGROUP / ROWS;
const QUERIES: u32 = SUBGROUPS * ROWS;
const INVOCATIONS: u32 = SUBGROUPS * SUBGROUP;
const PADDED4: u32 = DEPTH * SIZE4;
// Rows in workgroup memory are 16 bytes longer than what they hold, so that neighbours begin in different banks.
const LINE: u32 = PADDED4 + 2u;
const WEIGHTS: u32 = KEYS / 4u + 2u;
const SCORES: u32 = KEYS / 4u + 1u;
// Blocks of sums that pass through the scores' memory side by side: with two, one barrier parts a block from the next.
const SLOTS: u32 = KEYS / SIZE;
const VALUES: u32 = KEYS * LINE;
const SHARES: u32 = 2u * KEYS * LINE;

// [KEYS][LINE] keys, [KEYS][LINE] values, [QUERIES][WEIGHTS] weights; before them, [QUERIES][LINE] queries
var<workgroup> halves: array<Half, max(SHARES + QUERIES * WEIGHTS, QUERIES * LINE) * CELLS>;
var<workgroup> floats: array<Float, QUERIES * SCORES * CELLS>; // [QUERIES][SCORES], every subgroup its own rows
var<workgroup> flags: array<u32, 8>; // by subgroup: a row has outgrown its reference

/// Vector i of the tile of keys or values that begins with row `key` of those at vector `start`; zeros outside.
fn fetch(start: u32, key: u32, i: u32) -> vec4<f16> {
  let row = key + i / PADDED4;
  let part = i % PADDED4;
  var value = vec4<f16>();
  if (i < KEYS * PADDED4 && part < D4 && row < params.keys) {
    value = kv[start + row * params.key4 + part];
  }
  return value;
}

fn keep(base: u32, i: u32, value: vec4<f16>) {
  if (i < KEYS * PADDED4) {
    put(base + i / PADDED4 * LINE + i % PADDED4, value);
  }
}

/// The workgroup's queries, zeros outside.
fn stage_queries(start: u32, first: u32, index: u32) {
  for (var i = index; i < QUERIES * PADDED4; i += INVOCATIONS) {
    let row = first + i / PADDED4;
    var value = vec4<f16>();
    if (i % PADDED4 < D4 && row < params.end_query) {
      value = q[start + row * params.query4 + i % PADDED4];
    }
    put(i / PADDED4 * LINE + i % PADDED4, value);
  }
}

fn stage_keys(start: u32, key: u32, index: u32) {
  for (var i = index; i < KEYS * PADDED4; i += INVOCATIONS) {
    keep(0u, i, fetch(start, key, i));
  }
}

/// The largest scaled score of a row, of which this lane knows `mine`.
fn row_peak(mine: vec4<f32>) -> f32 {
  var peak = max(max(mine.x, mine.y), max(mine.z, mine.w));
  for (var step = 1u; step < PARTS; step *= 2u) {
    peak = max(peak, subgroupShuffleXor(peak, step));
  }
  return max(peak * params.scale, MASKED);
}

fn row_total(mine: f32) -> f32 {
  var total = mine;
  for (var step = 1u; step < PARTS; step *= 2u) {
    total += subgroupShuffleXor(total, step);
  }
  return total;
}

fn shrink_slot(line: u32, slot: u32, part: u32, shrink: f32) {
  for (var c = part; c < SIZE4; c += PARTS) {
    let at = line * SCORES + slot * SIZE4 + c;
    put_number(at, number(at) * shrink);
  }
}

/// With more than one slot, the barrier of the next block parts the uses of this one.
fn leave_slot() {
  if (SLOTS == 1u) {
    meet();
  }
}

struct Who {
  @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32,
}

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32, who: Who) {
  let subgroup = who.subgroup;
  let lane = who.lane;
  let batch = params.first_batch + group.y / params.heads;
  let head = group.y % params.heads;
  let first = params.first_query + group.x * QUERIES;
  let queries0 = batch * params.queries * params.query4 + params.q_offset + head * D4 - params.q_base;
  let keys0 = batch * params.keys * params.key4 + head * D4 - params.kv_base + params.k_offset;
  let values0 = keys0 - params.k_offset + params.v_offset;
  let rows = subgroup * ROWS;
  let line = rows + lane / PARTS;
  let part = lane % PARTS;
  let query = first + line;
  let visible = select(params.keys, min(params.keys, query + 1u), params.causal == 1u);
  stage_queries(queries0, first, index);
  if (index < 8u) {
    flags[index] = 0u;
  }
  workgroupBarrier();
  //@for r BLOCKS
  //@for d DEPTH
  let q{r}_{d} = coopLoadT<MatrixA>(&halves[((rows + {r}u * SIZE) * LINE + {d}u * SIZE4) * CELLS], LINE * CELLS);
  var o{r}_{d} = MatrixC();
  //@end
  //@end
  workgroupBarrier();
  stage_keys(keys0, 0u, index);
  workgroupBarrier();
  var reference = MASKED;
  var total = 0.0;
  let end = select(params.keys, min(params.keys, first + QUERIES), params.causal == 1u);
  for (var key = 0u; key < end; key += KEYS) {
    //@for i STAGES
    let value{i} = fetch(values0, key, index + {i}u * INVOCATIONS);
    //@end
    for (var j = 0u; j < KEYS / SIZE; j++) {
      //@for r BLOCKS
      var dots{r} = MatrixC();
      //@end
      //@for d DEPTH
      let k{d} = coopLoad<MatrixB>(&halves[(j * SIZE * LINE + {d}u * SIZE4) * CELLS], LINE * CELLS);
      //@for r BLOCKS
      dots{r} = coopMultiplyAdd(q{r}_{d}, k{d}, dots{r});
      //@end
      //@end
      //@for r BLOCKS
      coopStoreT(dots{r}, &floats[((rows + {r}u * SIZE) * SCORES + j * SIZE4) * CELLS], SCORES * CELLS);
      //@end
    }
    //@for i STAGES
    keep(VALUES, index + {i}u * INVOCATIONS, value{i});
    //@end
    meet();
    var peaks = vec4<f32>(MASKED);
    //@for g GROUPS
    let at{g} = vec4<u32>(key + ({g}u * PARTS + part) * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    let score{g} = select(vec4<f32>(MASKED), number(line * SCORES + {g}u * PARTS + part), at{g} < vec4<u32>(visible));
    peaks = max(peaks, score{g});
    //@end
    let peak = row_peak(peaks);
    if (key == 0u) {
      reference = peak;
    }
    let outgrown = subgroupAny(peak > reference + SLACK);
    if (lane == 0u) {
      flags[subgroup] = select(0u, 1u, outgrown);
    }
    let grown = workgroupUniformLoad(&flags);
    if ((grown[0] | grown[1] | grown[2] | grown[3] | grown[4] | grown[5] | grown[6] | grown[7]) != 0u) {
      let shrink = exp2(reference - max(reference, peak));
      reference = max(reference, peak);
      total *= shrink;
      //@for d DEPTH
      //@for r BLOCKS
      coopStoreT(o{r}_{d}, &floats[((rows + {r}u * SIZE) * SCORES + {d}u % SLOTS * SIZE4) * CELLS], SCORES * CELLS);
      //@end
      meet();
      shrink_slot(line, {d}u % SLOTS, part, shrink);
      meet();
      //@for r BLOCKS
      o{r}_{d} = coopLoadT<MatrixC>(&floats[((rows + {r}u * SIZE) * SCORES + {d}u % SLOTS * SIZE4) * CELLS], SCORES * CELLS);
      //@end
      leave_slot();
      //@end
    }
    //@for g GROUPS
    let weights{g} = vec4<f16>(exp2(fma(score{g}, vec4<f32>(params.scale), vec4<f32>(-reference))));
    total += dot(vec4<f32>(weights{g}), vec4<f32>(1.0));
    put(SHARES + line * WEIGHTS + {g}u * PARTS + part, weights{g});
    //@end
    meet();
    stage_keys(keys0, key + KEYS, index);
    for (var j = 0u; j < KEYS / SIZE; j++) {
      //@for r BLOCKS
      let p{r} = coopLoadT<MatrixA>(&halves[(SHARES + (rows + {r}u * SIZE) * WEIGHTS + j * SIZE4) * CELLS], WEIGHTS * CELLS);
      //@end
      //@for d DEPTH
      let v{d} = coopLoadT<MatrixB>(&halves[(VALUES + j * SIZE * LINE + {d}u * SIZE4) * CELLS], LINE * CELLS);
      //@for r BLOCKS
      o{r}_{d} = coopMultiplyAdd(p{r}, v{d}, o{r}_{d});
      //@end
      //@end
    }
    workgroupBarrier();
  }
  let share = 1.0 / row_total(total);
  let start = ((batch * params.queries + query) * params.heads + head) * D4 - params.out_base;
  //@for d DEPTH
  //@for r BLOCKS
  coopStoreT(o{r}_{d}, &floats[((rows + {r}u * SIZE) * SCORES + {d}u % SLOTS * SIZE4) * CELLS], SCORES * CELLS);
  //@end
  meet();
  for (var c = part; c < SIZE4 && query < params.end_query; c += PARTS) {
    if ({d}u * SIZE4 + c < D4) {
      out[start + {d}u * SIZE4 + c] = store_out(number(line * SCORES + {d}u % SLOTS * SIZE4 + c) * share);
    }
  }
  leave_slot();
  //@end
}
