#![allow(missing_docs, clippy::all, unsafe_code, clippy::unwrap_used, clippy::print_stdout)]
use tensorswap::base::config::Config; use tensorswap::base::dtype::Dtype; use tensorswap::io::{Engine,Tensor}; use tensorswap::optimizer::Optimizer;
#[test] fn smoke() {
 for backend in ["io_uring","memory","threads"] { for sync in ["commit","none"] { for cache in ["0","300KiB","100MiB"] { for threads in [1usize,3] { for pipe in ["true","false"] { for disk in [Dtype::F32, Dtype::Bf16] { for pinned in ["0","2MiB"] {
  let dir = format!("/tmp/smoke/{backend}{sync}{cache}{threads}{pipe}{pinned}{}", disk.name()); let _=std::fs::remove_dir_all(&dir); std::fs::create_dir_all(&dir).unwrap();
  // the temporary store makes no file
  if backend != "memory" { std::fs::File::create(format!("{dir}/data")).unwrap().set_len(64<<20).unwrap(); }
  let mut c = Config::new(); for (k,v) in [("backend",backend),("sync",sync),("cache_bytes",cache),("path",&dir),("views_max","3"),("pipeline_read",pipe),("pipeline_write",pipe),("pinned_bytes",pinned)] { c.set(k,v).unwrap(); }
  let e = Engine::new(&c).unwrap(); let o = Optimizer::new(&e,&c).unwrap();
  o.add_state("m",Dtype::F32,Dtype::F32).unwrap(); o.add_state("a",Dtype::F32,disk).unwrap();
  let sizes: Vec<u64> = (0..60).map(|i| if i%20==7 {50_000+i*13} else {1+i*37}).collect();
  for (i,s) in sizes.iter().enumerate() { o.add_parameter(i as u64+100,None,*s).unwrap(); }
  for (i,s) in sizes.iter().enumerate() { let mut v = vec![i as f32; *s as usize]; let t = unsafe { Tensor::new(v.as_mut_ptr().cast(), *s, Dtype::F32).unwrap() }; o.initialize_parameters(&[i as u64+100],&[t]).unwrap(); }
  let steps = 7; let aborted = 3;
  let mut done=0;
  for step in 0..steps+1 {
   let abort = step == aborted;
   match o.step_begin(None) { Ok(())=>{}, Err(x)=>panic!("{x}") }
   std::thread::scope(|s| for t in 0..threads { let (o,dir)=(&o,&dir); s.spawn(move || { let mut n=0; loop { if abort && n>=5 {break;} n+=1; match o.step_next() { Ok(None)=>break, Err(x)=>panic!("{x:?}"), Ok(Some(v)) => { 
      let i = v.id-100; let m = v.state(0).unwrap(); let a = v.state(1).unwrap();
      let (m,a) = unsafe { (std::slice::from_raw_parts_mut(m.as_mut_ptr().cast::<f32>(), m.numel() as usize), std::slice::from_raw_parts_mut(a.as_mut_ptr().cast::<f32>(), m.numel() as usize)) };
      for (k,(m,a)) in m.iter_mut().zip(a).enumerate() { assert_eq!(*m, i as f32 + done as f32, "{dir} step {step} param {i} elem {k}"); assert_eq!(*a, done as f32); if abort && sync=="commit" || !abort { *m+=1.0; *a+=1.0; } }
      if i % 7 == t as u64 { std::thread::yield_now(); }
      o.step_done(v.id, !(abort && sync=="none")).unwrap(); } } } }); });
   if abort { match o.step_abort() { Ok(())=>{}, Err(x) if sync=="none" => { println!("{dir}: {x}"); while let Some(v) = o.step_next().unwrap() { o.step_done(v.id,false).unwrap(); }
       for _ in 0..1 { o.step_end().unwrap(); } }, Err(x)=>panic!("{x}") } } else { o.step_end().unwrap(); done+=1; }
  }
  o.commit().unwrap();
  for (i,s) in sizes.iter().enumerate() { let mut v = vec![0f32; *s as usize]; let t = unsafe { Tensor::new(v.as_mut_ptr().cast(), *s, Dtype::F32).unwrap() }; o.read_state(i as u64+100,"a",&t).unwrap(); assert!(v.iter().all(|x| *x==done as f32)); o.read_state(i as u64+100,"m",&t).unwrap(); assert!(v.iter().all(|x| *x==done as f32+i as f32)); }
  // one by one
  for (i,_) in sizes.iter().enumerate() { let v = o.swap_in_state(i as u64+100, (i+1<sizes.len()).then_some(i as u64+101)).unwrap(); let m=v.state(0).unwrap(); unsafe { *m.as_mut_ptr().cast::<f32>() = -1.0; } o.swap_out_state(v.id, i%2==0).unwrap(); }
  o.commit().unwrap();
  println!("ok {dir}");
 }}}}}}}
}
