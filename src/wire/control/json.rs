//! Reading JSON the way the protocol's other programs write it.
//!
//! Go matches object keys with field names whatever their case and reads `null` as "the zero value"; peers rely on both (one real
//! client sends `HostInfo` for `Hostinfo`). [`from_slice`] does the same for every type made with serde's derive: field names match in
//! any case, `null` stands for the empty value where a value is required, and keys of *maps* (capabilities, DNS suffixes) stay as
//! they are. Types read through it must not use `flatten`.
//!
//! What strangers send is read with [`from_slice_within`]: a megabyte of JSON can hold half a million values, and some of them take a
//! hundred times their length in memory.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::value::{CowStrDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Visitor};

/// Reads a value, field names in any case, `null` as the zero value.
///
/// # Errors
/// Not JSON, or not of this type.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    from_slice_within(usize::MAX, bytes)
}

/// As [`from_slice`], with a limit on how many values there are in all lists and objects together. What unknown fields hold is passed
/// over without counting.
///
/// # Errors
/// Not JSON, not of this type, or more values than that.
pub fn from_slice_within<T: DeserializeOwned>(values: usize, bytes: &[u8]) -> serde_json::Result<T> {
    let (mut json, left) = (serde_json::Deserializer::from_slice(bytes), Cell::new(values));
    let value = T::deserialize(Lenient { inner: &mut json, left: &left })?;
    json.end()?;
    Ok(value)
}

/// What `null` stands for under each of serde's type hints.
#[derive(Clone, Copy)]
enum Zero {
    Bool,
    Number,
    Text,
    List,
    Object,
    /// The target decides (`deserialize_any`): `null` stays `null`.
    Unit,
}

struct Lenient<'b, D> {
    inner: D,
    /// How many values may still come.
    left: &'b Cell<usize>,
}

macro_rules! hinted {
    ($($method:ident => $zero:ident),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            let Self { inner, left } = self;
            inner.deserialize_any(LenientVisitor { inner: visitor, fields: &[], zero: Zero::$zero, left })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Lenient<'_, D> {
    type Error = D::Error;

    hinted! {
        deserialize_any => Unit, deserialize_bool => Bool,
        deserialize_i8 => Number, deserialize_i16 => Number, deserialize_i32 => Number, deserialize_i64 => Number, deserialize_i128 => Number,
        deserialize_u8 => Number, deserialize_u16 => Number, deserialize_u32 => Number, deserialize_u64 => Number, deserialize_u128 => Number,
        deserialize_f32 => Number, deserialize_f64 => Number,
        deserialize_char => Text, deserialize_str => Text, deserialize_string => Text, deserialize_identifier => Text,
        deserialize_bytes => Text, deserialize_byte_buf => Text,
        deserialize_seq => List, deserialize_map => Object,
        deserialize_unit => Unit,
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let Self { inner, left } = self;
        inner.deserialize_any(LenientVisitor { inner: visitor, fields, zero: Zero::Object, left })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let Self { inner, left } = self;
        inner.deserialize_option(LenientVisitor { inner: visitor, fields: &[], zero: Zero::Unit, left })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _name: &'static str, _len: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let Self { inner, left } = self;
        inner.deserialize_enum(name, variants, LenientVisitor { inner: visitor, fields: &[], zero: Zero::Unit, left })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_ignored_any(visitor)
    }
}

struct LenientVisitor<'b, V> {
    inner: V,
    fields: &'static [&'static str],
    zero: Zero,
    left: &'b Cell<usize>,
}

macro_rules! forwarded {
    ($($method:ident: $value:ty),* $(,)?) => {$(
        fn $method<E: de::Error>(self, value: $value) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for LenientVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    forwarded! {
        visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64,
        visit_str: &str, visit_borrowed_str: &'de str, visit_string: String, visit_bytes: &[u8], visit_borrowed_bytes: &'de [u8],
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        let nothing = std::iter::empty::<()>();
        match self.zero {
            Zero::Bool => self.inner.visit_bool(false),
            Zero::Number => self.inner.visit_u64(0),
            Zero::Text => self.inner.visit_str(""),
            Zero::List => self.inner.visit_seq(SeqDeserializer::<_, E>::new(nothing)),
            Zero::Object => self.inner.visit_map(MapDeserializer::<_, E>::new(nothing.map(|()| ((), ())))),
            Zero::Unit => self.inner.visit_unit(),
        }
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Lenient { inner: deserializer, left: self.left })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Lenient { inner: deserializer, left: self.left })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        // A derived structure would take a list for its fields in their order, which is no writer's meaning.
        if matches!(self.zero, Zero::Object) {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self.inner));
        }
        self.inner.visit_seq(LenientSeq { seq, left: self.left })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(LenientMap { map, fields: self.fields, left: self.left })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(data)
    }
}

struct LenientSeq<'b, A> {
    seq: A,
    left: &'b Cell<usize>,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for LenientSeq<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.seq.next_element_seed(LenientSeed { seed, left: self.left })
    }

    fn size_hint(&self) -> Option<usize> {
        self.seq.size_hint()
    }
}

struct LenientMap<'b, A> {
    map: A,
    /// The fields of the structure being read; empty for a map, whose keys stay as they are.
    fields: &'static [&'static str],
    left: &'b Cell<usize>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for LenientMap<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        if self.fields.is_empty() { self.map.next_key_seed(seed) } else { self.map.next_key_seed(FieldSeed { seed, fields: self.fields }) }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.map.next_value_seed(LenientSeed { seed, left: self.left })
    }
}

struct LenientSeed<'b, S> {
    seed: S,
    left: &'b Cell<usize>,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for LenientSeed<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| de::Error::custom("it holds more values than such a message may"))?;
        self.left.set(left);
        self.seed.deserialize(Lenient { inner: deserializer, left: self.left })
    }
}

/// Reads a key and replaces it by the field it means.
struct FieldSeed<S> {
    seed: S,
    fields: &'static [&'static str],
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for FieldSeed<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let key = <Cow<'de, str> as de::Deserialize<'de>>::deserialize(deserializer)?;
        let field = self.fields.iter().find(|field| **field == key).or_else(|| self.fields.iter().find(|f| f.eq_ignore_ascii_case(&key)));
        let key = field.map_or(key, |field| Cow::Borrowed(*field));
        let key: CowStrDeserializer<'_, D::Error> = key.into_deserializer();
        self.seed.deserialize(key)
    }
}
