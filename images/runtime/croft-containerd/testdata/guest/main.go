// Guest is the program in the test's OCI image.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	switch os.Args[1] {
	case "serve": // says hello and waits for its end
		kernel, _ := os.ReadFile("/proc/version")
		fmt.Println("hello from", strings.TrimSpace(string(kernel)))
		fmt.Fprintln(os.Stderr, "this is stderr")
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		fmt.Println("goodbye")
		os.Exit(7)
	case "echo": // for exec
		io.Copy(os.Stdout, os.Stdin)
		os.Exit(3)
	}
}
