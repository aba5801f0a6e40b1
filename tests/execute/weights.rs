//! Checkpoints in every type and in shards hold the same weights, rounded to that type.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ebbtide::model::{self, ModelConfig};
use ebbtide::training::checkpoint::Checkpoint;
use ebbtide::training::places;
use half::{bf16, f16};
use safetensors::tensor::{serialize, Dtype, TensorView};
use safetensors::SafeTensors;

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf/llama")
}

/// The weights of the fixture in another type, one file for every second tensor.
fn sharded(dtype: Dtype, encode: impl Fn(f32) -> Vec<u8>) -> Directory {
    let name = format!("ebbtide-{dtype}-{}", std::process::id());
    let directory = Directory(std::env::temp_dir().join(name));
    std::fs::create_dir(&directory.0).unwrap();
    let bytes = std::fs::read(llama().join("model.safetensors")).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let encoded: Vec<(String, Vec<usize>, Vec<u8>)> = whole
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let values = tensor.data().chunks(4);
            let values = values.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            let data = values.flat_map(&encode).collect();
            (name, tensor.shape().to_vec(), data)
        })
        .collect();
    let mut map = BTreeMap::new();
    for shard in 0..2 {
        let file = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let tensors = encoded.iter().skip(shard).step_by(2);
        let views = tensors.map(|(name, shape, data)| {
            map.insert(name.clone(), file.clone());
            (name, TensorView::new(dtype, shape.clone(), data).unwrap())
        });
        let bytes = serialize(views, None).unwrap();
        std::fs::write(directory.0.join(&file), bytes).unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(directory.0.join("model.safetensors.index.json"), index).unwrap();
    directory
}

fn read(path: &Path, model: &ModelConfig) -> Vec<f32> {
    let checkpoint = Checkpoint::open(path, model).unwrap();
    let values = places(model).flat_map(|place| checkpoint.read(place).unwrap());
    values.collect()
}

#[test]
fn weights_of_every_type_are_read_from_shards() {
    let model = model::load(llama().to_str().unwrap()).unwrap();
    let exact = read(&llama(), &model);
    let rounded = |f: fn(f32) -> f32| exact.iter().map(|&v| f(v)).collect::<Vec<f32>>();
    let f32s = sharded(Dtype::F32, |v| v.to_le_bytes().to_vec());
    assert!(read(&f32s.0, &model) == exact);
    let f16s = sharded(Dtype::F16, |v| f16::from_f32(v).to_le_bytes().to_vec());
    assert!(read(&f16s.0, &model) == rounded(|v| f16::from_f32(v).to_f32()));
    let bf16s = sharded(Dtype::BF16, |v| bf16::from_f32(v).to_le_bytes().to_vec());
    assert!(read(&bf16s.0, &model) == rounded(|v| bf16::from_f32(v).to_f32()));
    assert!(rounded(|v| f16::from_f32(v).to_f32()) != exact);

    let f64s = sharded(Dtype::F64, |v| f64::from(v).to_le_bytes().to_vec());
    let error = Checkpoint::open(&f64s.0, &model).unwrap_err();
    assert!(error.message.contains("not F32, F16 or BF16"), "{error}");
    std::fs::remove_file(bf16s.0.join("model-00002-of-00002.safetensors")).unwrap();
    let error = Checkpoint::open(&bf16s.0, &model).unwrap_err();
    assert!(error.message.contains("model-00002-of-00002"), "{error}");
}
