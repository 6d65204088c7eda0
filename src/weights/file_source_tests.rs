use super::*;
use crate::tensor::DType;
use crate::weights::Source;

/// `matrix` [4, 3] = 0, 1, ... 11 and `conv` [2, 3, 1, 1] and `batch` [1, 2, 3] = 0, 1, ... 5 as f32, and integers.
fn file() -> Arc<TensorFile> {
    let floats = |n: u32| (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<u8>>();
    let (matrix, conv, ids) = (floats(12), floats(6), vec![0; 16]);
    let view = |dtype, shape, data| safetensors::tensor::TensorView::new(dtype, shape, data).unwrap();
    let tensors = [
        ("matrix", view(safetensors::Dtype::F32, vec![4, 3], &matrix)),
        ("conv", view(safetensors::Dtype::F32, vec![2, 3, 1, 1], &conv)),
        ("batch", view(safetensors::Dtype::F32, vec![1, 2, 3], &conv)),
        ("ids", view(safetensors::Dtype::I64, vec![2], &ids)),
    ];
    let bytes = safetensors::serialize(tensors, None).unwrap();
    Arc::new(TensorFile::from_bytes(bytes, "test.safetensors").unwrap())
}

fn rows(source: &FileSource, name: &str, rows: Range<usize>) -> Vec<f32> {
    let mut out = vec![9.0];
    source.rows(name, rows, &mut out).unwrap();
    out
}

#[test]
fn views_slice_transpose_and_reshape() {
    let mut source = FileSource::new("test");
    source.add("half", &file(), "matrix", Change::RowPart(1, 2)).unwrap();
    source.add("turned", &file(), "matrix", Change::Transpose).unwrap();
    source.add("flat", &file(), "conv", Change::Squeeze).unwrap();
    assert_eq!(source.info("half").unwrap(), TensorInfo { dtype: DType::F32, shape: vec![2, 3] });
    assert_eq!(rows(&source, "half", 0..2), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
    assert_eq!(rows(&source, "half", 1..2), [9.0, 10.0, 11.0]);
    assert_eq!(source.info("turned").unwrap().shape, [3, 4]);
    assert_eq!(rows(&source, "turned", 1..3), [1.0, 4.0, 7.0, 10.0, 2.0, 5.0, 8.0, 11.0]);
    assert_eq!(source.info("flat").unwrap().shape, [2, 3]);
    assert_eq!(rows(&source, "flat", 1..2), [3.0, 4.0, 5.0]);
    source.add("table", &file(), "batch", Change::SqueezeFront).unwrap();
    assert_eq!((source.info("table").unwrap().shape, rows(&source, "table", 1..2)), (vec![2, 3], vec![3.0, 4.0, 5.0]));
    assert_eq!(source.names(), ["flat", "half", "table", "turned"]);
    assert_eq!(source.stored_name("half"), Some("matrix"));
}

#[test]
fn wrong_views_and_rows_are_errors() {
    let mut source = FileSource::new("test");
    for (stored, change) in [
        ("matrix", Change::RowPart(0, 3)),
        ("conv", Change::SqueezeFront),
        ("conv", Change::Transpose),
        ("ids", Change::Keep),
        ("nothing", Change::Keep),
    ] {
        assert!(source.add("name", &file(), stored, change).is_err(), "{stored} {change:?}");
    }
    source.add("name", &file(), "matrix", Change::Keep).unwrap();
    assert!(source.add("name", &file(), "conv", Change::Keep).unwrap_err().to_string().contains("two tensors"));
    assert!(source.rows("name", 3..5, &mut Vec::new()).unwrap_err().to_string().contains("3..5"));
    let error = source.rows("nme", 0..1, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("`nme`") && error.contains("`name`"), "{error}");
    assert!(FileSource::whole(file()).err().unwrap().to_string().contains("I64"));
}
