package main

import "syscall"

func stackPointer(regs *syscall.PtraceRegs) uintptr { return uintptr(regs.Sp) }
