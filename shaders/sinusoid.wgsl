// y[b, n * dim + j] = sin or cos of scale * x[b, n] * frequency[j mod dim/2], the time embedding of DDPM (arXiv:2006.11239).
// **Shapes** x [B, N]; frequencies [dim / 2]; y [B, N * dim] as vectors; an odd dim ends with a zero.
// **Grid** one invocation an output vector, in workgroups of 64 along x.
// **Host** frequencies exp(-ln(10000) i / (dim / 2 - shift)) in f32; |angle| < 65536.
// **Numbers** angles reduced by pi/4 in three parts, polynomials of Cephes' sinf and cosf (error below 1e-7), because WGSL's own sin and cos promise too little.

struct Params {
    count: u32,     // output vectors: B * ceil(N * dim / 4)
    width: u32,     // ceil(N * dim / 4)
    width_x: u32,   // ceil(N / 4)
    inputs: u32,    // N
    dim: u32,
    flip: u32,      // 1: [cos | sin], 0: [sin | cos]
    scale: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;         // [B, N]
@group(0) @binding(2) var<storage, read> frequencies: array<f32>;     // [dim / 2]
@group(0) @binding(3) var<storage, read_write> y: array<YVec>;        // [B, N * dim]

fn wave(angle: f32, cosine: bool) -> f32 {
    let positive = abs(angle);
    var octant = u32(positive * 1.27323954473516);
    octant += octant & 1u;
    let k = f32(octant);
    let r = ((positive - k * 0.78515625) - k * 2.4187564849853515625e-4) - k * 3.77489497744594108e-8;
    let z = r * r;
    let sin_r = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r;
    let cos_r = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0;
    let quadrant = (octant / 2u) % 4u;
    if (cosine) {
        let v = select(cos_r, sin_r, quadrant % 2u == 1u);
        return select(v, -v, quadrant == 1u || quadrant == 2u);
    }
    let v = select(sin_r, cos_r, quadrant % 2u == 1u);
    return select(v, -v, (quadrant >= 2u) != (angle < 0.0));
}

fn element(row: u32, channel: u32) -> f32 {
    let n = channel / params.dim;
    let j = channel % params.dim;
    let half = params.dim / 2u;
    if (n >= params.inputs || j >= 2u * half) {
        return 0.0;
    }
    let angle = params.scale * x[row * params.width_x + n / 4u][n % 4u] * frequencies[j % half];
    return wave(angle, (j < half) == (params.flip == 1u));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= params.count) {
        return;
    }
    let row = id.x / params.width;
    let c = id.x % params.width * 4u;
    let v = vec4<f32>(element(row, c), element(row, c + 1u), element(row, c + 2u), element(row, c + 3u));
    y[id.x] = store_y(v);
}
