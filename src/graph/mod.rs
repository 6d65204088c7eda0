//! The graph: values in SSA form, nodes in execution order, weights by path. Building it needs no GPU and no weights.

pub mod executor;
pub mod footprint;
pub mod plan;
pub mod recording;
mod rows;
mod staging;
pub mod timing;
pub mod trial;
mod upload;

use crate::error::Error;
use crate::kernels::{Call, Limits, vector_bytes, vectors};
use crate::tensor::DType;

/// A value of a [`Graph`]: the output of one node or an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(crate) u32);

/// A weight of a [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightId(pub(crate) u32);

/// Axis lengths of a value: [B, H, W, C]. Tokens are [B, T, 1, C].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Batch.
    pub batch: u32,
    /// Height, or tokens.
    pub height: u32,
    /// Width, or 1.
    pub width: u32,
    /// Channels (stored padded to a multiple of four).
    pub channels: u32,
}

impl Shape {
    /// A picture [B, H, W, C].
    pub fn new(batch: u32, height: u32, width: u32, channels: u32) -> Self {
        Self { batch, height, width, channels }
    }

    /// Tokens [B, T, C].
    pub fn tokens(batch: u32, tokens: u32, channels: u32) -> Self {
        Self::new(batch, tokens, 1, channels)
    }

    /// Rows of channels of one batch element: H * W.
    pub fn positions(self) -> u32 {
        self.height * self.width
    }

    /// Rows of channels: B * H * W.
    pub fn rows(self) -> u32 {
        self.batch * self.positions()
    }

    /// Vectors of four in one row.
    pub fn vectors(self) -> u32 {
        vectors(self.channels)
    }

    /// Bytes as stored.
    pub fn bytes(self, dtype: DType) -> u64 {
        u64::from(self.rows()) * u64::from(self.vectors()) * vector_bytes(dtype)
    }

    /// The same picture with other channels.
    #[must_use]
    pub fn with_channels(self, channels: u32) -> Self {
        Self { channels, ..self }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}, {}, {}, {}]", self.batch, self.height, self.width, self.channels)
    }
}

/// What is known of a value.
#[derive(Debug, Clone)]
pub struct ValueInfo {
    /// The scope path and operation that made it.
    pub label: String,
    /// Its shape.
    pub shape: Shape,
    /// How its elements are stored.
    pub dtype: DType,
}

/// What a node reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// An activation.
    Value(Value),
    /// A weight.
    Weight(WeightId),
}

impl Operand {
    /// The activation, if it is one.
    pub fn value(&self) -> Option<Value> {
        match self {
            Operand::Value(value) => Some(*value),
            Operand::Weight(_) => None,
        }
    }
}

impl From<Value> for Operand {
    fn from(value: Value) -> Self {
        Operand::Value(value)
    }
}

impl From<WeightId> for Operand {
    fn from(weight: WeightId) -> Self {
        Operand::Weight(weight)
    }
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Node {
    /// The scope path and the kernel's stem.
    pub label: String,
    /// What runs.
    pub call: Call,
    /// What it reads, in the order of the shader's bindings.
    pub inputs: Vec<Operand>,
    /// What it writes, bound after the inputs.
    pub outputs: Vec<Value>,
}

/// Where a physical row of a packed weight comes from: tensor (index into `keys`) and row; `None` is a row of zeros.
pub type RowSource = Option<(u8, u32)>;

/// How a weight is laid out for its kernel.
#[derive(Debug, Clone, PartialEq)]
pub enum Layout {
    /// A matrix `[N][taps][K]` in panels of 32 columns: vector `((panel * taps + tap) * K + k) * 8 + lane` holds the
    /// columns `panel * 32 + lane * 4 ..+4`; `columns` gives the source column of every physical k, if any.
    Matrix {
        /// The source of every physical output column.
        rows: Vec<RowSource>,
        /// The source of every physical k.
        columns: Vec<Option<u32>>,
        /// kernel height x kernel width; the source is [N, K, taps].
        taps: u32,
        /// Stored element type.
        dtype: DType,
    },
    /// A vector in f32; a missing source is zero.
    Vector {
        /// The source of every physical element.
        rows: Vec<RowSource>,
    },
    /// Rows of a table, every row padded to a multiple of four.
    Table {
        /// First row.
        first: u32,
        /// Number of rows.
        count: u32,
        /// Channels of a row.
        channels: u32,
        /// Stored element type.
        dtype: DType,
    },
    /// Numbers that no checkpoint holds, in f32.
    Constant {
        /// The numbers.
        values: Vec<f32>,
    },
}

impl Layout {
    /// The stored element type.
    pub fn dtype(&self) -> DType {
        match self {
            Layout::Matrix { dtype, .. } | Layout::Table { dtype, .. } => *dtype,
            Layout::Vector { .. } | Layout::Constant { .. } => DType::F32,
        }
    }
}

/// One weight: which tensors it is made of and how.
#[derive(Debug, Clone)]
pub struct WeightSpec {
    /// Which part of the model holds it (an index given by whoever builds the graph).
    pub part: usize,
    /// The checkpoint keys.
    pub keys: Vec<String>,
    /// The layout.
    pub layout: Layout,
}

impl WeightSpec {
    /// Bytes on the GPU.
    pub fn bytes(&self) -> u64 {
        match &self.layout {
            Layout::Matrix { rows, columns, taps, dtype } => {
                (rows.len().next_multiple_of(32) * columns.len() * *taps as usize * dtype.bytes()) as u64
            }
            Layout::Vector { rows } => (rows.len().next_multiple_of(32) * 4) as u64,
            Layout::Constant { values } => (values.len().next_multiple_of(32) * 4) as u64,
            Layout::Table { count, channels, dtype, .. } => {
                u64::from(*count) * u64::from(vectors(*channels)) * vector_bytes(*dtype)
            }
        }
    }
}

/// A program for the GPU in construction: appended in execution order, so there is nothing to sort.
#[derive(Debug)]
pub struct Graph {
    pub(crate) values: Vec<ValueInfo>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) weights: Vec<WeightSpec>,
    pub(crate) inputs: Vec<(String, Value)>,
    pub(crate) outputs: Vec<(String, Value)>,
    pub(crate) fault: Option<Error>,
    precision: DType,
    limits: Limits,
    taps: bool,
}

impl Graph {
    /// An empty graph whose activations are stored as `precision` and whose bindings keep to `limits`.
    pub fn new(precision: DType, limits: Limits) -> Self {
        Self {
            values: Vec::new(),
            nodes: Vec::new(),
            weights: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            fault: None,
            precision,
            limits,
            taps: false,
        }
    }

    /// Keeps every value named by [`Graph::tap`] as an output, for comparing with a reference.
    #[must_use]
    pub fn with_taps(mut self) -> Self {
        self.taps = true;
        self
    }

    /// How activations are stored.
    pub fn precision(&self) -> DType {
        self.precision
    }

    /// What the adapter allows.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What is known of `value`.
    pub fn info(&self, value: Value) -> &ValueInfo {
        &self.values[value.0 as usize]
    }

    /// The shape of `value`.
    pub fn shape(&self, value: Value) -> Shape {
        self.info(value).shape
    }

    /// The stored element type of `value`.
    pub fn dtype(&self, value: Value) -> DType {
        self.info(value).dtype
    }

    /// A value that the caller fills before every run.
    pub fn input(&mut self, name: &str, shape: Shape, dtype: DType) -> Value {
        let value = self.value(name, shape, dtype);
        self.inputs.push((name.to_owned(), value));
        value
    }

    /// Names a value that stays readable after a run.
    pub fn output(&mut self, name: &str, value: Value) {
        self.outputs.push((name.to_owned(), value));
    }

    /// Names a value for comparison with a reference; kept only [with taps](Graph::with_taps).
    pub fn tap(&mut self, name: &str, value: Value) {
        if self.taps {
            self.output(name, value);
        }
    }

    /// Declares a weight.
    pub fn weight(&mut self, spec: WeightSpec) -> WeightId {
        let bytes = spec.bytes();
        if bytes > self.limits.binding {
            let place = spec.keys.join(" + ");
            self.fail(
                Error::new("a weight is larger than one binding of this adapter")
                    .at(place)
                    .expected(format!("at most {} bytes", self.limits.binding))
                    .found(format!("{bytes} bytes"))
                    .hint("--precision f16, or an adapter with a larger max_storage_buffer_binding_size"),
            );
        }
        self.weights.push(spec);
        WeightId(self.weights.len() as u32 - 1)
    }

    /// Declares numbers that no checkpoint holds.
    pub fn constant(&mut self, values: Vec<f32>) -> WeightId {
        self.weight(WeightSpec { part: 0, keys: Vec::new(), layout: Layout::Constant { values } })
    }

    /// Appends an operation with several outputs.
    pub fn push_many(
        &mut self,
        label: &str,
        call: Call,
        inputs: Vec<Operand>,
        outputs: &[(Shape, DType)],
    ) -> Vec<Value> {
        let label = format!("{label}:{}", call.variant.stem);
        let outputs: Vec<Value> = outputs.iter().map(|(shape, dtype)| self.value(&label, *shape, *dtype)).collect();
        self.nodes.push(Node { label, call, inputs, outputs: outputs.clone() });
        outputs
    }

    /// Appends an operation with one output.
    pub fn push(&mut self, label: &str, call: Call, inputs: Vec<Operand>, shape: Shape, dtype: DType) -> Value {
        self.push_many(label, call, inputs, &[(shape, dtype)])[0]
    }

    /// A value that several operations write, each a part of it, with [`Graph::push_into`].
    pub fn reserve(&mut self, label: &str, shape: Shape, dtype: DType) -> Value {
        self.value(label, shape, dtype)
    }

    /// Appends an operation that writes a part of a reserved value: the rows that its dispatches are about.
    pub fn push_into(&mut self, label: &str, call: Call, inputs: Vec<Operand>, output: Value) {
        let label = format!("{label}:{}", call.variant.stem);
        self.nodes.push(Node { label, call, inputs, outputs: vec![output] });
    }

    /// Remembers the first fault that a later step must report before anything runs.
    pub fn fail(&mut self, error: Error) {
        self.fault.get_or_insert(error);
    }

    /// The first fault found while building.
    pub fn fault(&self) -> Option<&Error> {
        self.fault.as_ref()
    }

    /// All nodes, in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All declared weights.
    pub fn weights(&self) -> &[WeightSpec] {
        &self.weights
    }

    /// Floating-point operations of one run.
    pub fn flops(&self) -> u64 {
        self.nodes.iter().map(|node| node.call.flops).sum()
    }

    /// Bytes of all weights on the GPU.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(WeightSpec::bytes).sum()
    }

    fn value(&mut self, label: &str, shape: Shape, dtype: DType) -> Value {
        self.values.push(ValueInfo { label: label.to_owned(), shape, dtype });
        Value(self.values.len() as u32 - 1)
    }
}
