//! `scumble info` and `--explain` of every kind of model beside Stable Diffusion, as their users meet them; the memory that is
//! foretold against what is counted.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use scumble::gpu::{Gpu, GpuOptions};
use scumble::pipelines::inspect::{Loaded, loaded};
use scumble::pipelines::{
    Esrgan, Imagen, Request, System, TileSide, Tiling, esrgan_plan, imagen_graphs, imagen_settings,
};
use scumble::tensor::{DType, HostTensor};
use scumble::weights::esrgan::EsrganCheckpoint;
use scumble::weights::imagen::ImagenStage;

fn scumble(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scumble"));
    command.args(words).env("SCUMBLE_CACHE_DIR", "").stdin(Stdio::null()).output().unwrap()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

/// What a command tells, in which every part must stand.
fn told(words: &[&str], parts: &[&str]) -> String {
    let output = scumble(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in parts {
        assert!(text.contains(part), "{words:?}: {part:?} is not in {text}");
    }
    text
}

/// Parameters of a file, as its header counts them.
fn parameters(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().iter().map(|(_, view)| view.shape().iter().product::<usize>()).sum()
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let count = digits.len();
    digits.chars().enumerate().fold(String::new(), |text, (index, digit)| {
        let comma = if index > 0 && (count - index).is_multiple_of(3) { "," } else { "" };
        format!("{text}{comma}{digit}")
    })
}

#[test]
fn info_tells_upscalers_of_esrgans_family() {
    let count = thousands(parameters(&golden("esrgan/real_x2.safetensors")));
    let path = golden("esrgan/real_x2.safetensors");
    let text = told(
        &["info", path.to_str().unwrap(), "-W", "64", "-H", "40"],
        &[
            "real_x2 (ESRGAN's family, enlarges 2 times)",
            &format!("network: {count} parameters, f16"),
            "1 residual-in-residual dense blocks, 10 channels, each layer adding 6, squares of 2 x 2 pixels as channels",
            "given picture: 64 x 40 pixels, enlarged: 128 x 80 pixels",
            "1 of 64 x 40",
        ],
    );
    assert!(text.contains("  f32 ") && text.contains("  f16 "), "{text}");
    told(
        &["info", path.to_str().unwrap(), "--precision", "f16", "--tile", "96"],
        &["given picture: 512 x 512", " of 160 x 160"],
    );
    told(&["info", golden("esrgan/plus_x4.safetensors").to_str().unwrap()], &["ESRGAN+", "enlarges 4 times"]);
    told(&["info", golden("esrgan/real_x4.pth").to_str().unwrap()], &["real_x4 (ESRGAN's family"]);
}

#[test]
fn info_tells_the_stages_of_deepfloyd_if() {
    let [text_encoder, unet] = ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"]
        .map(|file| thousands(parameters(&golden("imagen/I").join(file))));
    told(
        &["info", golden("imagen/I").to_str().unwrap()],
        &[
            "I (DeepFloyd IF, stage I",
            &format!("text_encoder: {text_encoder} parameters"),
            "T5, ",
            "tokenizer: tokenizer.json",
            &format!("unet: {unet} parameters"),
            "3 channels in, 6 out",
            "picture 1: ",
            "steps 100, guidance 7",
            "sampler ddpm",
            "text 0",
            "1 unet",
            "in all",
        ],
    );
    let second = told(
        &["info", golden("imagen/II").to_str().unwrap(), "-W", "24", "-H", "16"],
        &["stage II", "no text encoder", "6 channels in, 6 out", "picture 1: 24 x 16 pixels", "noise level 250"],
    );
    assert!(!second.contains("text_encoder:"), "{second}");
    told(&["info", "emoji-imagen"], &["stages I and II", "unet 1: ", "unet 2: ", "picture 2: 128 x 128 pixels"]);
}

#[test]
fn info_tells_models_with_a_prior() {
    told(
        &["info", golden("karlo/plain").to_str().unwrap()],
        &[
            "(Karlo: ",
            "text_encoder: ",
            "prior: ",
            "text_proj: ",
            "decoder: ",
            "super_res_first: ",
            "super_res_last: ",
            "prior: steps 25, guidance 4",
            "steps 25, guidance 8",
            "enlarged: ",
            "in all",
        ],
    );
    let [model, prior] = ["kandinsky/model", "kandinsky/prior"].map(golden);
    let [model, prior] = [model.to_str().unwrap(), prior.to_str().unwrap()];
    told(
        &["info", model, "--prior", prior, "-W", "64", "-H", "64"],
        &[
            "(Kandinsky 2.2: ",
            "image_encoder: ",
            "movq decoder: ",
            "led away from a black picture",
            "64 x 64 pixels",
            "in all",
        ],
    );
    let output = scumble(&["info", model]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--prior"));
}

#[test]
fn info_tells_the_x4_upscaler() {
    let path = golden("upscale/plain");
    told(
        &["info", path.to_str().unwrap(), "-W", "24", "-H", "16", "--tile", "16"],
        &[
            "plain (Stable Diffusion's x4 upscaler)",
            "text_encoder: ",
            "unet: ",
            "vae decoder: ",
            "noise level at most ",
            "given picture: 24 x 16 pixels, enlarged: ",
            "noise level: 20, tiles: 2",
            "denoise",
            "in all",
        ],
    );
    told(&["info", path.to_str().unwrap()], &["given picture: 128 x 128 pixels", "tiles: 1"]);
}

#[test]
fn explain_tells_every_link_of_a_chain() {
    let then = golden("esrgan/first_x2.safetensors");
    let then = then.to_str().unwrap();
    let chain = ["generate", "red apple", "--explain", "--then", then, "--then", then];
    told(
        &chain,
        &[
            "model: emoji (StableDiffusionPipeline)",
            "picture: 128 x 128 pixels, steps: 20",
            "then model: first_x2 (ESRGAN or Real-ESRGAN)",
            "given picture: 128 x 128 pixels, enlarged: 256 x 256 pixels",
            "given picture: 256 x 256 pixels, enlarged: 512 x 512 pixels",
        ],
    );
    let [first, second] = ["imagen/I", "imagen/II"].map(golden);
    let [first, second] = [first.to_str().unwrap(), second.to_str().unwrap()];
    let words = ["generate", "a cat", "--explain", "-m", first, "--then", second, "--then", then, "--sr-steps", "3"];
    told(&words, &["picture 1: ", "picture 2: ", "steps 3, guidance 4", "2 unet", "then model: first_x2"]);
    told(
        &["generate", "a cat", "--explain", "-m", "emoji-dalle", "--then", then],
        &["image tokens: ", "then model: first_x2"],
    );
    let refused = scumble(&["generate", "a cat", "--explain", "-m", first, "--clip-skip", "2"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn explain_tells_what_upscale_would_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.png");
    image::save_buffer(&path, &[7; 3 * 20 * 10], 20, 10, image::ColorType::Rgb8).unwrap();
    let model = golden("esrgan/real_x4.pth");
    told(
        &["upscale", path.to_str().unwrap(), "-m", model.to_str().unwrap(), "--explain"],
        &["model: real_x4 (ESRGAN or Real-ESRGAN)", "given picture: 20 x 10 pixels, enlarged: 80 x 40 pixels"],
    );
}

/// The largest of what is foretold, and what a drawing takes at most.
fn counted(gpu: &Arc<Gpu>, system: Arc<dyn System>, request: Request) -> u64 {
    gpu.wait().unwrap();
    gpu.reset_peak_memory();
    system.draw(request, 1, false).unwrap().for_each(|event| drop(event.unwrap()));
    gpu.memory().peak
}

/// What is told is an upper bound, and no wild one: ends that graphs share are counted in each.
fn bounds(place: &str, told: u64, counted: u64) {
    assert!(counted <= told && told <= counted + counted / 2, "{place}: told {told} bytes, counted {counted}");
}

#[test]
fn memory_is_foretold() {
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let picture = HostTensor::new(vec![1, 3, 40, 56], vec![0.25; 3 * 40 * 56]).unwrap();
    let open = || EsrganCheckpoint::open(&golden("esrgan/real_x4.pth")).unwrap();
    let plan = esrgan_plan(&open(), gpu.limits(), DType::F32, [40, 56], TileSide::Off, Tiling::default()).unwrap();
    let model = Arc::new(Esrgan::new(Arc::clone(&gpu), open(), DType::F32));
    let request = Request { image: Some(picture), ..Request::default() };
    bounds("ESRGAN", plan.peak, counted(&gpu, model, request));

    let stages = || ["imagen/I", "imagen/II"].map(|name| ImagenStage::open(&golden(name)).unwrap()).into();
    let request = Request { prompt: "a cat".to_owned(), steps: Some(2), sr_steps: Some(2), ..Request::default() };
    let opened: Vec<ImagenStage> = stages();
    let settings = imagen_settings(&opened, &request).unwrap();
    let graphs = imagen_graphs(&opened, gpu.limits(), DType::F32, &settings, None).unwrap();
    let together: Vec<Vec<String>> = (1..=2)
        .map(|stage| ["unet", "scheduler", "picture", "pixels"].map(|name| format!("{stage} {name}")).to_vec())
        .collect();
    let told: Vec<Loaded> = loaded(&graphs, &together);
    assert!(told.iter().any(|stage| stage.name == "2 unet") && told.iter().all(|stage| stage.fault.is_none()));
    let most = told.iter().map(|stage| stage.peak).max().unwrap();
    let model = Arc::new(Imagen::new(Arc::clone(&gpu), stages(), DType::F32).unwrap());
    bounds("IF", most, counted(&gpu, model, request));
}
