// The virtual concatenation x = [a | b] along the channels: a vector of it, read from where it lies (no copy is made).
// **Shapes** a [rows, A4]; b [rows, B4], bound to a again where there is none; x [rows, C4] with C = A + B channels.
// **Grid** none: a prelude of the GroupNorm shaders, which bind a and b and define params.
// **Host** SEAM 0: no b; 1: A is a multiple of four, so that no vector straddles the seam; 2: any A.
// **Numbers** none; pad channels read as zero.

fn element(row: u32, channel: u32) -> f32 {
    if (channel < params.channels_a) {
        return load_x(a[row * params.width_a + channel / 4u - params.a_base])[channel % 4u];
    }
    if (channel < params.channels) {
        let c = channel - params.channels_a;
        return load_x(b[row * params.width_b + c / 4u - params.b_base])[c % 4u];
    }
    return 0.0;
}

fn load_pair(row: u32, column: u32) -> vec4<f32> {
    if (SEAM == 2u) {
        let c = column * 4u;
        return vec4<f32>(element(row, c), element(row, c + 1u), element(row, c + 2u), element(row, c + 3u));
    }
    if (SEAM == 1u && column >= params.width_a) {
        return load_x(b[row * params.width_b + column - params.width_a - params.b_base]);
    }
    return load_x(a[row * params.width_a + column - params.a_base]);
}
