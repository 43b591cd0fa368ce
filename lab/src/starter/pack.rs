//! A trained starter into `resources/starter/`, in bf16.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use lathe_engine::weights::SafetensorsFolder;
use safetensors::{Dtype, tensor::TensorView};

use crate::repo;

const COPIED: [&str; 4] =
    ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];
const README: &str = include_str!("starter_readme.md");

/// Puts the model in `source` into the repository.
pub fn pack(source: &Path) -> Result<()> {
    let to = repo::root().join("resources/starter");
    repo::create_dir_all(&to)?;
    pack_into(source, &to)?;
    let (size, most) = (repo::folder_bytes(&to)?, repo::MAX_STARTER_BYTES);
    ensure!(size <= most, "The starter has {size} bytes, {most} are allowed: {}", to.display());
    println!("packed {:.1} MB: {}", size as f64 / 1e6, to.display());
    Ok(())
}

fn pack_into(source: &Path, to: &Path) -> Result<()> {
    // Everything is read before anything is written.
    let weights = bf16(source)?;
    let files: Vec<(PathBuf, String)> = COPIED
        .into_iter()
        .map(|name| Ok((to.join(name), repo::read_to_string(&source.join(name))?)))
        .collect::<Result<_>>()?;
    for (path, text) in files {
        repo::write(&path, text)?;
    }
    repo::write(&to.join("model.safetensors"), weights)?;
    repo::write(&to.join("README.md"), README)
}

/// The weights of a model folder as a safetensors file in bf16.
fn bf16(folder: &Path) -> Result<Vec<u8>> {
    let weights = SafetensorsFolder::open(folder)?;
    let mut names: Vec<&str> = weights.names().collect();
    names.sort_unstable();
    let mut buffers = Vec::new();
    for name in names {
        let tensor = weights.read(name)?;
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> =
            values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
        buffers.push((name, tensor.dims().to_vec(), bytes));
    }
    let mut views = Vec::new();
    for (name, shape, bytes) in &buffers {
        views.push((*name, TensorView::new(Dtype::BF16, shape.clone(), bytes)?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn a_packed_model_is_the_same_in_bf16() {
        let (source, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tensor = Tensor::new(&[[1.0f32, -2.5], [0.1, 3e-9]], &Device::Cpu).unwrap();
        let tensors = BTreeMap::from([("a.weight".to_owned(), tensor)]);
        lathe_engine::files::write_safetensors(&source.path().join("model.safetensors"), &tensors).unwrap();
        assert!(pack_into(source.path(), to.path()).is_err(), "no tokenizer");
        assert!(!to.path().join("model.safetensors").exists());
        for name in COPIED {
            std::fs::write(source.path().join(name), name).unwrap();
        }
        pack_into(source.path(), to.path()).unwrap();
        assert_eq!(std::fs::read_to_string(to.path().join("config.json")).unwrap(), "config.json");
        let packed = SafetensorsFolder::open(to.path()).unwrap().read("a.weight").unwrap();
        let values: Vec<f32> = packed.flatten_all().unwrap().to_vec1().unwrap();
        for (value, expected) in values.iter().zip([1.0, -2.5, 0.1, 3e-9]) {
            assert!((value - expected).abs() <= expected.abs() / 256.0, "{value} {expected}");
        }
    }
}
