//! Contiguous typed ids and the tables that only they index.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// A typed index into one kind of [`Table`].
pub trait Id: Copy + Eq + Ord {
    /// The id of the `index`-th entry.
    fn from_index(index: usize) -> Self;
    /// The position of its entry.
    fn index(self) -> usize;
}

/// Defines a typed id over `u32`.
macro_rules! define_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);
        impl Id for $name {
            fn from_index(index: usize) -> Self {
                Self(u32::try_from(index).expect("fewer than 2^32 entries"))
            }
            fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

define_id! {
    /// A value of the step's program: an activation, gradient, weight or state of one block.
    ValueId
}
define_id! {
    /// An operator of the step's program.
    OpId
}
define_id! {
    /// A step of the program: the unit in which the search thinks.
    StepId
}
define_id! {
    /// A storable tensor: an activation that backward needs again.
    TensorId
}
define_id! {
    /// A buffer with an address, in device or host memory.
    BufferId
}
define_id! {
    /// An event that one instruction signals and others wait for.
    EventId
}

/// A vector that only `I` indexes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table<I, T> {
    entries: Vec<T>,
    id: PhantomData<I>,
}

impl<I: Id, T> Table<I, T> {
    /// A table without entries.
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
            id: PhantomData,
        }
    }
    /// Adds an entry and says its id.
    pub fn push(&mut self, entry: T) -> I {
        self.entries.push(entry);
        I::from_index(self.entries.len() - 1)
    }
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// The entry, if the id is of this table.
    pub fn get(&self, id: I) -> Option<&T> {
        self.entries.get(id.index())
    }
    /// All ids in order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = I> + use<I, T> {
        (0..self.entries.len()).map(I::from_index)
    }
    /// All entries with their ids, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (I, &T)> {
        self.entries
            .iter()
            .enumerate()
            .map(|(i, entry)| (I::from_index(i), entry))
    }
    /// All entries in order.
    pub fn values(&self) -> std::slice::Iter<'_, T> {
        self.entries.iter()
    }
    /// All entries in order, to be changed.
    pub fn values_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.entries.iter_mut()
    }
}

impl<I: Id, T> Default for Table<I, T> {
    fn default() -> Self {
        Self::new()
    }
}
impl<I: Id, T> FromIterator<T> for Table<I, T> {
    fn from_iter<It: IntoIterator<Item = T>>(entries: It) -> Self {
        Self {
            entries: entries.into_iter().collect(),
            id: PhantomData,
        }
    }
}
impl<I: Id, T> Index<I> for Table<I, T> {
    type Output = T;
    fn index(&self, id: I) -> &T {
        &self.entries[id.index()]
    }
}
impl<I: Id, T> IndexMut<I> for Table<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.entries[id.index()]
    }
}
