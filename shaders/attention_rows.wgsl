// out[i, h] = sum_j softmax_j(scale q[i, h] . k[j, h]) v[j, h]: what attention_lanes and attention_texels do with what they fetch.
// **Shapes** as in those two.
// **Grid** a workgroup of 8 lanes owns 8 * QUERIES neighbouring queries; a lane owns every eighth of them. KEYS keys are taken at a time: with LOADS < KEYS each lane fetches the vectors of its own keys and spread() shows them to all, else all lanes fetch the same.
// **Host** appends this, its lines between //@for and //@end repeated, to one of the two behind a generated spread(), which needs subgroups of eight where LOADS < KEYS.
// **Numbers** as in those two. Everything that a lane keeps has a name of its own: not every release of Mesa unrolls loops over arrays of this size, and only unrolled ones stay in registers.

//@for b in BIAS
// Times log2(e), as the scores; never so low that a row of which everything is hidden would lose its weights.
fn bias_of(row: u32, key: u32) -> f32 {
  return max(bias[row + min(key, params.keys - 1u)] * 1.4426950408889634, -1e29);
}
//@end

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let batch = params.first_batch + group.y / params.heads;
  let head = group.y % params.heads;
  let first = params.first_query + group.x * 8u * QUERIES;
  //@for r in QUERIES
  let row_{r} = min(first + {r}u * 8u + lane, params.end_query - 1u);
  let start_{r} = (batch * params.queries + row_{r}) * params.query4 + params.q_offset + head * D4 - params.q_base;
  var highest_{r} = -1e30;
  var total_{r} = 0.0;
  //@for d in D4
  let query_{r}_{d} = fetch_q(start_{r} + {d}u) * params.scale;
  var sum_{r}_{d} = vec4<f32>();
  //@end
  //@end
  let last_visible = first + 8u * QUERIES;
  let end = select(params.keys, min(params.keys, last_visible), params.causal == 1u);
  let keys0 = batch * params.keys * params.key4 + head * D4 - params.kv_base;
  for (var key = 0u; key < end; key += KEYS) {
    //@for l in LOADS
    let place_{l} = key + select({l}u, {l}u * 8u + lane, LOADS < KEYS);
    let keys_{l} = keys0 + min(place_{l}, params.keys - 1u) * params.key4;
    //@end
    var loaded: array<vec4<f32>, LOADS>;
    //@for r in QUERIES
    //@for j in KEYS
    var score_{r}_{j} = 0.0;
    //@end
    //@end
    //@for d in D4
    //@for l in LOADS
    loaded[{l}] = fetch_kv(keys_{l} + params.k_offset + {d}u);
    //@end
    let k_{d} = spread(loaded);
    //@for r in QUERIES
    //@for j in KEYS
    score_{r}_{j} = fma(query_{r}_{d}.x, k_{d}[{j}].x, score_{r}_{j});
    score_{r}_{j} = fma(query_{r}_{d}.y, k_{d}[{j}].y, score_{r}_{j});
    score_{r}_{j} = fma(query_{r}_{d}.z, k_{d}[{j}].z, score_{r}_{j});
    score_{r}_{j} = fma(query_{r}_{d}.w, k_{d}[{j}].w, score_{r}_{j});
    //@end
    //@end
    //@end
    //@for r in QUERIES
    //@for b in BIAS
    let bias_{r} = batch * params.bias_batch + head * params.bias_head + row_{r} * params.bias_query - params.bias_base;
    //@for j in KEYS
    score_{r}_{j} += bias_of(bias_{r}, key + {j}u);
    //@end
    //@end
    let visible_{r} = select(params.keys, min(params.keys, first + {r}u * 8u + lane + 1u), params.causal == 1u);
    var peak_{r} = highest_{r};
    //@for j in KEYS
    peak_{r} = select(peak_{r}, max(peak_{r}, score_{r}_{j}), key + {j}u < visible_{r});
    //@end
    let shrink_{r} = exp2(highest_{r} - peak_{r});
    highest_{r} = peak_{r};
    total_{r} *= shrink_{r};
    //@for j in KEYS
    score_{r}_{j} = select(0.0, exp2(min(score_{r}_{j} - peak_{r}, 0.0)), key + {j}u < visible_{r});
    total_{r} += score_{r}_{j};
    //@end
    //@end
    //@for d in D4
    //@for l in LOADS
    loaded[{l}] = fetch_kv(keys_{l} + params.v_offset + {d}u);
    //@end
    let v_{d} = spread(loaded);
    //@for r in QUERIES
    sum_{r}_{d} *= shrink_{r};
    //@for j in KEYS
    sum_{r}_{d} = fma(vec4<f32>(score_{r}_{j}), v_{d}[{j}], sum_{r}_{d});
    //@end
    //@end
    //@end
  }
  //@for r in QUERIES
  if (first + {r}u * 8u + lane < params.end_query) {
    let to = ((batch * params.queries + row_{r}) * params.heads + head) * D4 - params.out_base;
    let share = 1.0 / total_{r};
    //@for d in D4
    out[to + {d}u] = store_out(sum_{r}_{d} * share);
    //@end
  }
  //@end
}
