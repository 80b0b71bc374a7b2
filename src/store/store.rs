//! TEMP
#![allow(unused)]
use std::ffi::{CStr, CString};
use super::{Layout, StateSpec, Version};
use crate::base::config::OptimizerOptions;
use crate::base::error::Result;
use crate::base::sync::{Mutex,lock};
use crate::io::Engine;
pub(crate) type RecordIndex = u32;
#[derive(Debug, Clone)]
pub(crate) struct StoredRecord { pub(crate) id: u64, pub(crate) name: Option<Box<str>>, pub(crate) numel: u64, pub(crate) offset: u64, pub(crate) durable: Option<Version>, }
#[derive(Debug, Default)] struct Inner { layout: Layout, records: Vec<StoredRecord>, end: u64, step: u64, user: Vec<u8> }
#[derive(Debug)]
pub(crate) struct Store { inner: Mutex<Inner>, path: CString }
impl Store {
    pub(crate) fn open(engine: &Engine, options: &OptimizerOptions) -> Result<Store> { Ok(Store{inner: Mutex::new(Inner{end:65536,..Default::default()}), path: CString::new(options.directories[0].path.join("data").to_string_lossy().as_bytes()).unwrap_or_default()}) }
    pub(crate) fn layout(&self) -> Layout { lock(&self.inner).layout.clone() }
    pub(crate) fn add_state(&self, state: StateSpec) -> Result<()> { lock(&self.inner).layout.states.push(state); Ok(()) }
    pub(crate) fn record(&self, index: RecordIndex) -> Option<StoredRecord> { lock(&self.inner).records.get(index as usize).cloned() }
    pub(crate) fn add_record(&self, id: u64, name: Option<&str>, numel: u64) -> Result<RecordIndex> { let mut i = lock(&self.inner); let offset=i.end; i.end += 2*i.layout.extent_bytes(numel); i.records.push(StoredRecord{id,name:None,numel,offset,durable:None}); Ok(i.records.len() as u32 -1) }
    pub(crate) fn data_path(&self) -> &CStr { &self.path }
    pub(crate) fn step(&self) -> u64 { lock(&self.inner).step }
    pub(crate) fn user_data(&self) -> Vec<u8> { lock(&self.inner).user.clone() }
    pub(crate) fn scratch_directory(&self) -> &CStr { &self.path }
    pub(crate) fn reserved_bytes(&self) -> u64 { lock(&self.inner).end }
    pub(crate) fn commit(&self, step: u64, changes: &[(RecordIndex, Version)], user_data: Option<&[u8]>) -> Result<()> { let mut i = lock(&self.inner); i.step=step; for (r,v) in changes { i.records[*r as usize].durable=Some(*v);} Ok(()) }
}
