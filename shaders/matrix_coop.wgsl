// out[m, n] as in matrix_tile, its sums over taps and k made of products of SIZE x SIZE matrices that a subgroup holds together (SPV_KHR_cooperative_matrix; Metal's simdgroup_matrix); with PARTIAL the sums of one part of k go to partials instead, for matrix_reduce.
// **Shapes** a [B][H][W][A4], second [B][H][W][second4], w [panels][taps][K4 * 4][8], bias [panels * 8], row_bias [B][row_bias4], residual and out [B][OH][OW][N4], in vectors of four; partials [splits][partial_rows][4 * partial4] in f32. K4 = A4 + second4.
// **Grid** a workgroup of SUBGROUPS subgroups owns ROWS rows m (x, folded into z) and COLUMNS physical columns (y), with PARTIAL one part of the steps along taps and k (z); a subgroup owns FRAG_ROWS x (GROUPS x TOGETHER) x HALVES matrices of the tile, SUB_COLUMNS subgroups lying side by side, and finishes TOGETHER of them at a time.
// **Host** runs it only where subgroups have SUBGROUP invocations and the adapter lists SIZE x SIZE x SIZE products of f16 summed in f32; partials has rows and columns for whole tiles; operands that the flags leave out are bound to anything.
// **Numbers** products of halves are exact in f32 and summed there, DEPTH k at a time in the order of taps and k; the adapter may round within SIZE of them in its own way.
alias MatA = coop_mat{SIZE}x{SIZE}<f16, A>;
alias MatB = coop_mat{SIZE}x{SIZE}<f16, B>;
alias MatC = coop_mat{SIZE}x{SIZE}<f32, C>;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f16>>; // [B][H][W][A4]
@group(0) @binding(2) var<storage, read> second: array<vec4<f16>>; // [B][H][W][second4]
@group(0) @binding(3) var<storage, read> w: array<vec4<f16>>; // [panels][taps][K4 * 4][8]
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>; // [panels * 8]
@group(0) @binding(5) var<storage, read> row_bias: array<vec4<f32>>; // [B][row_bias4]
@group(0) @binding(6) var<storage, read> residual: array<OutVec>; // [B][OH][OW][N4]
//@for _ in WHOLE
@group(0) @binding(7) var<storage, read_write> out: array<OutVec>; // [B][OH][OW][N4]
//@end
//@for _ in PARTIAL
@group(0) @binding(7) var<storage, read_write> partials: array<f32>; // [splits][partial_rows][4 * partial4]
//@end

const STRIP_PITCH = TOGETHER * SIZE;
const STRIP_HALF = SIZE * STRIP_PITCH;
const STRIP = HALVES * STRIP_HALF;
const OUTSIDE = 0xFFFFFFFFu;
const DEPTH4 = DEPTH / 4u;
const INVOCATIONS = SUBGROUPS * SUBGROUP;
// Rows of the tiles are eight halves longer than what they hold, so that rows of a matrix lie in different banks.
const A_PITCH = DEPTH + 8u;
const B_PITCH = COLUMNS + 8u;
const A_TILE = ROWS * A_PITCH;
const B_TILE = DEPTH * B_PITCH;
//@for _ in VECTORS
const UNIT = 4u;
var<workgroup> tile_a: array<vec4<f16>, 2u * A_TILE / UNIT>; // [2][ROWS][A_PITCH]
var<workgroup> tile_b: array<vec4<f16>, 2u * B_TILE / UNIT>; // [2][DEPTH][B_PITCH]
var<workgroup> strip: array<vec4<f32>, SUBGROUPS * STRIP / UNIT>; // [SUBGROUPS][HALVES][SIZE][STRIP_PITCH]

fn take(i: u32) -> vec4<f32> { return strip[i / UNIT]; }

fn put_a(i: u32, v: vec4<f16>) { tile_a[i / UNIT] = v; }

fn put_b(i: u32, v: vec4<f16>) { tile_b[i / UNIT] = v; }
//@end
//@for _ in SCALARS
const UNIT = 1u;
var<workgroup> tile_a: array<f16, 2u * A_TILE>; // [2][ROWS][A_PITCH]
var<workgroup> tile_b: array<f16, 2u * B_TILE>; // [2][DEPTH][B_PITCH]
var<workgroup> strip: array<f32, SUBGROUPS * STRIP>; // [SUBGROUPS][HALVES][SIZE][STRIP_PITCH]

fn take(i: u32) -> vec4<f32> { return vec4<f32>(strip[i], strip[i + 1u], strip[i + 2u], strip[i + 3u]); }

fn put_a(i: u32, v: vec4<f16>) {
  tile_a[i] = v.x;
  tile_a[i + 1u] = v.y;
  tile_a[i + 2u] = v.z;
  tile_a[i + 3u] = v.w;
}

fn put_b(i: u32, v: vec4<f16>) {
  tile_b[i] = v.x;
  tile_b[i + 1u] = v.y;
  tile_b[i + 2u] = v.z;
  tile_b[i + 3u] = v.w;
}
//@end

// The first column in the tile of a subgroup's pair of matrices `pair`, values (half 0) or gates (half 1).
fn column_of(pair: u32, half: u32) -> u32 {
  let each = 32u / SIZE;
  return pair / each * (32u * HALVES) + half * 32u + pair % each * SIZE;
}

// Of an output row: the first stored row of its picture, and where its window begins below and right of the input's corner.
fn place_of(row: u32) -> vec3<u32> {
  let batch = row / params.positions;
  let position = row - batch * params.positions;
  let y = position / params.out_width;
  let top = select(0x40000000u, y * params.stride - params.pad_top, row < params.end_row);
  let left = (position - y * params.out_width) * params.stride - params.pad_left;
  return vec3<u32>(batch * ((params.height + params.upsample) >> params.upsample), top, left);
}

// The first vector in a of what tap `tap` reads at a place, with two inputs the pixel of both, or OUTSIDE.
fn start_of(place: vec3<u32>, tap: u32) -> u32 {
  let ky = tap / params.kernel_width;
  let y = place.y + ky;
  let x = place.z + tap - ky * params.kernel_width;
  let stored_width = (params.width + params.upsample) >> params.upsample;
  let pixel = (place.x + (y >> params.upsample)) * stored_width + (x >> params.upsample);
  let start = select(pixel * params.k4 - params.a_base, pixel, SECOND == 1u);
  return select(OUTSIDE, start, y < params.height && x < params.width);
}

// Vector k of what `start`, as start_of gives it, is the place of.
fn fetch_a(start: u32, k: u32) -> vec4<f16> {
  let a4 = params.k4 - params.second4;
  if (SECOND == 0u && start != OUTSIDE && k < a4) {
    return a[start + k];
  }
  if (SECOND == 1u && start != OUTSIDE && k < a4) {
    return a[start * a4 + k - params.a_base];
  }
  if (SECOND == 1u && start != OUTSIDE && k < params.k4) {
    return second[start * params.second4 + k - a4 - params.second_base];
  }
  return vec4<f16>();
}

// The vector of slot `slot` of the tile of weights from tap `tap` and vector `k` on.
fn fetch_b(panel0: u32, slot: u32, taps: u32, tap: u32, k: u32) -> vec4<f16> {
  let panel = panel0 + slot / (DEPTH * 8u);
  let inner = slot % (DEPTH * 8u);
  if (slot < COLUMNS / 4u * DEPTH && panel < params.panels && k * 4u + inner / 8u < params.k4 * 4u) {
    return w[((panel * taps + tap) * params.k4 + k) * 32u + inner];
  }
  return vec4<f16>();
}

// Puts a vector into its slot of the tile of weights that begins at `to`.
fn put_slot(to: u32, slot: u32, v: vec4<f16>) {
  if (slot < COLUMNS / 4u * DEPTH) {
    let inner = slot % (DEPTH * 8u);
    put_b(to + inner / 8u * B_PITCH + slot / (DEPTH * 8u) * 32u + inner % 8u * 4u, v);
  }
}

//@for _ in WHOLE
// Stores the matrices in a subgroup's strip: rows from row0 on, the tile's pairs of matrices from pair0 on.
fn finish_strip(base: u32, row0: u32, panel0: u32, pair0: u32, lane: u32) {
  for (var i = lane; i < STRIP_HALF / 4u; i += SUBGROUP) {
    let gate = take(base + 4u * i + (HALVES - 1u) * STRIP_HALF);
    let across = i % (STRIP_PITCH / 4u);
    let column = column_of(pair0 + across / (SIZE / 4u), 0u) / 4u + across % (SIZE / 4u);
    finish(row0 + i / (STRIP_PITCH / 4u), panel0 + column / 8u, column % 8u, take(base + 4u * i), gate);
  }
}
//@end

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) index: u32, @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
  let row0 = params.first_row + select(group.z * groups.x, 0u, PARTIAL == 1u) * ROWS + group.x * ROWS;
  let panel0 = group.y * (COLUMNS / 32u);
  let taps = params.kernel_height * params.kernel_width;
  let slabs = (params.k4 + DEPTH4 - 1u) / DEPTH4;
  var begin = 0u;
  var end = taps * slabs;
  if (PARTIAL == 1u) {
    let each = (end + params.splits - 1u) / params.splits;
    begin = min(group.z * each, end);
    end = min(begin + each, end);
  }
  var tap = begin / slabs;
  var slab = begin - tap * slabs;
  let column = index % DEPTH4;
  let line = index / DEPTH4;
  //@for i in A_LOADS
  let place_{i} = place_of(row0 + line + {i}u * (INVOCATIONS / DEPTH4));
  var start_{i} = start_of(place_{i}, tap);
  var a_{i} = fetch_a(start_{i}, slab * DEPTH4 + column);
  //@end
  //@for i in B_LOADS
  var b_{i} = fetch_b(panel0, index + {i}u * INVOCATIONS, taps, tap, slab * DEPTH4);
  //@end
  let side = subgroup % SUB_COLUMNS;
  let height = subgroup / SUB_COLUMNS * FRAG_ROWS * SIZE;
  //@for g in GROUPS
  //@for j in TOGETHER
  //@for h in HALVES
  let column_{g}_{j}_{h} = column_of((side * GROUPS + {g}u) * TOGETHER + {j}u, {h}u);
  //@for i in FRAG_ROWS
  var acc_{i}_{g}_{j}_{h} = MatC();
  //@end
  //@end
  //@end
  //@end
  for (var step = begin; step < end; step++) {
    let to_a = (step & 1u) * A_TILE;
    let to_b = (step & 1u) * B_TILE;
    //@for i in A_LOADS
    put_a(to_a + (line + {i}u * (INVOCATIONS / DEPTH4)) * A_PITCH + column * 4u, a_{i});
    //@end
    //@for i in B_LOADS
    put_slot(to_b, index + {i}u * INVOCATIONS, b_{i});
    //@end
    // The only barrier of a step: the other half of the tiles was read before the last one.
    workgroupBarrier();
    slab++;
    if (slab == slabs) {
      slab = 0u;
      tap++;
      //@for i in A_LOADS
      start_{i} = start_of(place_{i}, tap);
      //@end
    }
    if (step + 1u < end) {
      //@for i in A_LOADS
      a_{i} = fetch_a(start_{i}, slab * DEPTH4 + column);
      //@end
      //@for i in B_LOADS
      b_{i} = fetch_b(panel0, index + {i}u * INVOCATIONS, taps, tap, slab * DEPTH4);
      //@end
    }
    for (var deep = 0u; deep < DEPTH; deep += PRODUCTS * SIZE) {
      let from_a = to_a + height * A_PITCH + deep;
      let from_b = to_b + deep * B_PITCH;
      //@for s in PRODUCTS
      //@for i in FRAG_ROWS
      let at_{s}_{i} = (from_a + {i}u * SIZE * A_PITCH + {s}u * SIZE) / UNIT;
      let left_{s}_{i} = coopLoadT<MatA>(&tile_a[at_{s}_{i}], A_PITCH / UNIT);
      //@end
      //@for g in GROUPS
      //@for j in TOGETHER
      //@for h in HALVES
      let at_{s}_{g}_{j}_{h} = (from_b + {s}u * SIZE * B_PITCH + column_{g}_{j}_{h}) / UNIT;
      let right_{s}_{g}_{j}_{h} = coopLoadT<MatB>(&tile_b[at_{s}_{g}_{j}_{h}], B_PITCH / UNIT);
      //@for i in FRAG_ROWS
      acc_{i}_{g}_{j}_{h} = coopMultiplyAdd(left_{s}_{i}, right_{s}_{g}_{j}_{h}, acc_{i}_{g}_{j}_{h});
      //@end
      //@end
      //@end
      //@end
      //@end
    }
  }
  //@for _ in WHOLE
  let base = subgroup * STRIP;
  //@for i in FRAG_ROWS
  //@for g in GROUPS
  //@for j in TOGETHER
  //@for h in HALVES
  let to_{i}_{g}_{j}_{h} = (base + {h}u * STRIP_HALF + {j}u * SIZE) / UNIT;
  coopStoreT(acc_{i}_{g}_{j}_{h}, &strip[to_{i}_{g}_{j}_{h}], STRIP_PITCH / UNIT);
  //@end
  //@end
  workgroupBarrier();
  finish_strip(base, row0 + height + {i}u * SIZE, panel0, (side * GROUPS + {g}u) * TOGETHER, lane);
  workgroupBarrier();
  //@end
  //@end
  //@end
  //@for _ in PARTIAL
  let pitch = 4u * params.partial4;
  let part = (group.z * params.partial_rows + row0 + height) * pitch + panel0 * 32u;
  //@for i in FRAG_ROWS
  //@for g in GROUPS
  //@for j in TOGETHER
  //@for h in HALVES
  let to_{i}_{g}_{j}_{h} = part + {i}u * SIZE * pitch + column_{g}_{j}_{h};
  coopStoreT(acc_{i}_{g}_{j}_{h}, &partials[to_{i}_{g}_{j}_{h}], pitch);
  //@end
  //@end
  //@end
  //@end
  //@end
}
