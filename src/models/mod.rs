//! The networks, the layers they are made of, and the configs that describe them.

mod attention;
mod bart;
pub mod config;
/// From the intermediate product to a picture.
pub mod decoder {
    mod bands;
    pub mod movq;
    pub mod rrdb;
    pub mod vae;
    pub mod vqgan;
}
mod embedding;
/// From text vectors and noise to the intermediate product.
pub mod generator {
    pub mod conditioning;
    pub mod context;
    pub mod image_tokens;
    pub mod prior;
    pub mod text_proj;
    pub mod unet;
    mod unet_blocks;
}
mod linears;
pub mod nn;
mod norms;
mod resnet;
/// From tokens to vectors.
pub mod text {
    pub mod bart;
    pub mod clip;
    pub mod t5;
}
mod tokens;
/// From pictures to vectors.
pub mod vision {
    pub mod clip_image;
    pub mod inception;
}
mod wide;
