//! What a picture takes on the adapter, told without one from the published models' configs: the bars that scumble keeps.

use scumble::kernels::Limits;
use scumble::pipelines::inspect::{self, Stage, StageMemory};
use scumble::pipelines::{Request, Settings, Tiling};
use scumble::tensor::DType;
use scumble::weights::published;

const GIB: u64 = 1 << 30;

/// The stages of `pictures` pictures of a published model in f16, on a GPU that binds 2 GiB at once.
fn stages(model: &str, side: u32, pictures: u32, tiling: Tiling) -> Vec<StageMemory> {
    let checkpoint = published::random(model, 1).unwrap().unwrap();
    let request = Request { width: Some(side), height: Some(side), ..Request::default() };
    let settings = Settings::resolve(&request, &checkpoint).unwrap();
    assert!(settings.guided, "{model}: the bars are with guidance");
    let limits = Limits { binding: (2 << 30) - 4, ..Limits::default() };
    let stages = inspect::memory_of(&checkpoint, &settings, DType::F16, limits, pictures, tiling).unwrap();
    for stage in &stages {
        println!(
            "{model} {side} x {pictures} {}: weights {:.3}, activations {:.3}, others {:.3} GiB, in bands: {}",
            stage.stage.name(),
            stage.weights as f64 / GIB as f64,
            stage.activations as f64 / GIB as f64,
            stage.others as f64 / GIB as f64,
            stage.tiled
        );
        assert!(stage.fault.is_none(), "{model} {side}: {:?}", stage.fault);
    }
    stages
}

fn peak(stages: &[StageMemory]) -> u64 {
    stages.iter().map(StageMemory::peak).max().unwrap()
}

fn decode(stages: &[StageMemory]) -> &StageMemory {
    stages.iter().find(|stage| stage.stage == Stage::Decode).unwrap()
}

#[test]
fn sd15_at_512_takes_less_than_two_and_a_half_gib() {
    assert!(peak(&stages("sd15", 512, 1, Tiling::default())) <= 5 * GIB / 2);
    assert!(peak(&stages("sd15", 512, 4, Tiling::default())) <= 5 * GIB / 2);
}

#[test]
fn sdxl_at_1024_takes_less_than_seven_gib() {
    let stages = stages("sdxl", 1024, 1, Tiling::default());
    assert!(peak(&stages) <= 7 * GIB);
    assert!(!decode(&stages).tiled, "without a budget nothing asks for bands");
}

#[test]
fn several_sdxl_pictures_keep_within_seven_gib_in_bands() {
    let stages = stages("sdxl", 1024, 4, Tiling::Auto(Some(7 * GIB)));
    assert!(peak(&stages) <= 7 * GIB);
    assert!(decode(&stages).tiled);
}

#[test]
fn bands_take_less_than_half() {
    for (model, side) in [("sd15", 1024), ("sdxl", 1024), ("sdxl", 2048)] {
        let whole = decode(&stages(model, side, 1, Tiling::Off)).activations;
        let tiled = decode(&stages(model, side, 1, Tiling::On)).activations;
        assert!(2 * tiled < whole, "{model} {side}: {tiled} in bands, {whole} whole");
    }
}

#[test]
fn a_budget_decides_between_whole_and_bands() {
    let whole = decode(&stages("sdxl", 1024, 1, Tiling::Off)).peak();
    let decided = |budget: u64| decode(&stages("sdxl", 1024, 1, Tiling::Auto(Some(budget)))).tiled;
    assert_eq!((decided(whole), decided(whole - 1), decided(1)), (false, true, true));
}
