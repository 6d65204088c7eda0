struct Params { queries: u32, keys: u32, heads: u32, q4: u32, k4: u32, o4: u32, q_off: u32, k_off: u32, v_off: u32, causal: u32, scale: f32, pad: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<XVec>;
@group(0) @binding(2) var<storage, read> kv: array<XVec>;
@group(0) @binding(3) var<storage, read_write> o: array<XVec>;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let t = group.x * 64u + lane; let h = group.y; let b = group.z;
  if (t >= params.queries) { return; }
  var acc: array<vec4<f32>, D4>;
  var m = -1e30; var l = 0.0;
  let qi = (b * params.queries + t) * params.q4 + params.q_off + h * D4;
  for (var s = 0u; s < params.keys; s++) {
    if (params.causal == 1u && s > t) { break; }
    let ki = (b * params.keys + s) * params.k4 + params.k_off + h * D4;
    let vi = (b * params.keys + s) * params.k4 + params.v_off + h * D4;
    var d = 0.0;
    for (var c = 0u; c < D4; c++) { d += dot(load_x(q[qi + c]), load_x(kv[ki + c])); }
    d *= params.scale;
    let n = max(m, d); let f = exp(m - n); let p = exp(d - n); l = l * f + p; m = n;
    for (var c = 0u; c < D4; c++) { acc[c] = acc[c] * f + p * load_x(kv[vi + c]); }
  }
  for (var c = 0u; c < D4; c++) { o[(b * params.queries + t) * params.o4 + h * D4 + c] = store_x(acc[c] / l); }
}
