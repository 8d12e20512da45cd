// A Databricks workspace on 127.0.0.1 for the tests of the bundle: the server that Databricks' command line is itself
// tested against. It checks and keeps what is deployed and runs nothing.
package databricks

import (
	"bufio"
	"fmt"
	"os"
	"testing"

	"github.com/databricks/cli/libs/testserver"
)

// TestServe prints its address and serves until standard input ends.
func TestServe(t *testing.T) {
	server := testserver.New(t)
	testserver.AddDefaultHandlers(server)
	fmt.Println("serving", server.URL)
	for input := bufio.NewScanner(os.Stdin); input.Scan(); {
	}
}
