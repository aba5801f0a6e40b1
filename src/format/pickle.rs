//! A pickle (protocol 2) of plain values, as Python's `pickle` module reads it.
//!
//! In: a [`Value`]. Out: bytes. Only what a memory snapshot needs is here, in opcodes that the
//! JavaScript reader of pytorch.org/memory_viz knows too. Strings are written once and remembered;
//! long lists go in batches, because that reader passes each batch as arguments of one call.

use std::collections::HashMap;

/// What can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `int`.
    Int(i64),
    /// `bool`.
    Bool(bool),
    /// `str`.
    Str(String),
    /// `tuple` of two.
    Pair(Box<(Value, Value)>),
    /// `list`.
    List(Vec<Value>),
    /// `dict`, in this order.
    Dict(Vec<(&'static str, Value)>),
}

/// Entries of a list that are appended at once.
const BATCH: usize = 1000;

/// The pickle of a value.
pub fn dump(value: &Value) -> Vec<u8> {
    let mut writer = Writer {
        out: vec![0x80, 2], // PROTO 2
        memo: HashMap::new(),
    };
    writer.value(value);
    writer.out.push(b'.'); // STOP
    writer.out
}

struct Writer<'a> {
    out: Vec<u8>,
    /// The memo's index of every string written so far.
    memo: HashMap<&'a str, u32>,
}

impl<'a> Writer<'a> {
    fn value(&mut self, value: &'a Value) {
        match value {
            Value::Int(n) => self.int(*n),
            Value::Bool(yes) => self.out.push(if *yes { 0x88 } else { 0x89 }), // NEWTRUE, NEWFALSE
            Value::Str(text) => self.text(text),
            Value::Pair(pair) => {
                self.value(&pair.0);
                self.value(&pair.1);
                self.out.push(0x86); // TUPLE2
            }
            Value::List(entries) => {
                self.out.push(b']'); // EMPTY_LIST
                for batch in entries.chunks(BATCH) {
                    self.out.push(b'('); // MARK
                    for entry in batch {
                        self.value(entry);
                    }
                    self.out.push(b'e'); // APPENDS
                }
            }
            Value::Dict(entries) => {
                self.out.extend(b"}("); // EMPTY_DICT, MARK
                for (key, entry) in entries {
                    self.text(key);
                    self.value(entry);
                }
                self.out.push(b'u'); // SETITEMS
            }
        }
    }

    fn int(&mut self, n: i64) {
        if let Ok(byte) = u8::try_from(n) {
            self.out.extend([b'K', byte]); // BININT1
        } else if let Ok(word) = i32::try_from(n) {
            self.out.push(b'J'); // BININT
            self.out.extend(word.to_le_bytes());
        } else {
            self.out.extend([0x8a, 8]); // LONG1 of 8 bytes
            self.out.extend(n.to_le_bytes());
        }
    }

    fn text(&mut self, text: &'a str) {
        if let Some(index) = self.memo.get(text) {
            self.out.push(b'j'); // LONG_BINGET
            self.out.extend(index.to_le_bytes());
            return;
        }
        let index = self.memo.len() as u32;
        let length = u32::try_from(text.len()).expect("names are short");
        self.out.push(b'X'); // BINUNICODE
        self.out.extend(length.to_le_bytes());
        self.out.extend(text.as_bytes());
        self.out.push(b'r'); // LONG_BINPUT
        self.out.extend(index.to_le_bytes());
        self.memo.insert(text, index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_protocol() {
        let value = Value::Dict(vec![
            ("a", Value::List(vec![Value::Int(7), Value::Int(-2)])),
            ("b", Value::Str("a".into())),
            ("c", Value::Int(1 << 40)),
            ("d", Value::Bool(true)),
        ]);
        let expected = b"\x80\x02}(\
            X\x01\0\0\0ar\0\0\0\0](K\x07J\xfe\xff\xff\xffe\
            X\x01\0\0\0br\x01\0\0\0j\0\0\0\0\
            X\x01\0\0\0cr\x02\0\0\0\x8a\x08\0\0\0\0\0\x01\0\0\
            X\x01\0\0\0dr\x03\0\0\0\x88u.";
        assert_eq!(dump(&value), expected);
    }
}
