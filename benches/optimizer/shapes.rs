//! The parameters of the models.

use crate::options::Options;

/// A model: its name, and the elements of each parameter.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) numels: Vec<usize>,
}

impl Shape {
    pub(crate) fn elements(&self) -> usize {
        self.numels.iter().sum()
    }

    pub(crate) fn largest(&self) -> usize {
        self.numels.iter().copied().max().unwrap_or(0)
    }
}

/// Many large parameters of one size, and GPT-2 with its mixture.
pub(crate) fn shapes(options: &Options) -> [Shape; 2] {
    let scaled = |numel: &usize| (numel / options.scale.get()).max(1);
    let uniform = options.elements.get() / options.scale.get();
    [
        Shape {
            name: format!("{} x {:.1} Mi", options.parameters, mebi(uniform)),
            numels: vec![uniform.max(1); options.parameters.get()],
        },
        Shape {
            name: "GPT-2 124M".to_owned(),
            numels: gpt2().iter().map(scaled).collect(),
        },
    ]
}

fn mebi(count: usize) -> f64 {
    count as f64 / f64::from(1 << 20)
}

/// The parameters of GPT-2 with 124 million elements, as its authors published it.
fn gpt2() -> Vec<usize> {
    const WIDTH: usize = 768;
    let mut numels = vec![50_257 * WIDTH, 1024 * WIDTH];
    for _ in 0..12 {
        numels.extend([WIDTH, WIDTH]);
        numels.extend([WIDTH * 3 * WIDTH, 3 * WIDTH, WIDTH * WIDTH, WIDTH]);
        numels.extend([WIDTH, WIDTH]);
        numels.extend([WIDTH * 4 * WIDTH, 4 * WIDTH, 4 * WIDTH * WIDTH, WIDTH]);
    }
    numels.extend([WIDTH, WIDTH]);
    numels
}
