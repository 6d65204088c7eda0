// rgba = round(255 * clamp(x / 2 + 1 / 2, 0, 1)) in 8 bits, alpha 255, or 0 where a channel is not finite.
// **Shapes** x [P, 1] vectors whose first three channels are red, green, blue; rgba [P / 4] vectors of packed pixels.
// **Grid** one invocation four pixels; workgroups of 64 fold from x into y.
// **Host** reads alpha to find numbers that are not finite; vectors past P are bound but hold nothing.
// **Numbers** ties round to even, as numpy's round does in diffusers' image processor; finiteness is judged by exponent bits.

struct Params {
    begin: u32,    // first pixel of this launch, a multiple of four
    end: u32,      // one past the last
    x_base: u32,
    y_base: u32,   // in vectors of four pixels
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<XVec>;               // [P]
@group(0) @binding(2) var<storage, read_write> rgba: array<vec4<u32>>; // [P / 4]

fn pixel(p: u32) -> u32 {
    if (p >= params.end) {
        return 0u;
    }
    let v = load_x(x[p - params.x_base]);
    let exponent = bitcast<vec4<u32>>(v) & vec4<u32>(0x7f800000u);
    let bad = any(exponent.xyz == vec3<u32>(0x7f800000u));
    let q = vec4<u32>(round(255.0 * clamp(v * 0.5 + 0.5, vec4<f32>(0.0), vec4<f32>(1.0))));
    return q.x | (q.y << 8u) | (q.z << 16u) | select(0xff000000u, 0u, bad);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let p = params.begin + ((group.y * groups.x + group.x) * 64u + lane) * 4u;
    if (p >= params.end) {
        return;
    }
    rgba[p / 4u - params.y_base] = vec4<u32>(pixel(p), pixel(p + 1u), pixel(p + 2u), pixel(p + 3u));
}
